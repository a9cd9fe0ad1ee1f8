/* What the statistics of an atlas need to know of some images' latents, in float32.
 * Compiled and called by token_scan.py.
 *
 * A row of latents is one token's. Nearly all are zero, so the others are found first, a few
 * thousand latents at a time.
 */
#include <stdint.h>
#include <string.h>

#include "cpu_kernels.h"

#define GROUP 64
#define AT_ONCE 4096

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "made for little-endian processors"
#endif

/* The numbers of the latents from begin to end that differ from zero; returns how many. */
static long find_nonzero(const float *row, long begin, long end, int32_t *found) {
    long n_found = 0, start = begin;
    for (; start + GROUP <= end; start += GROUP) {
        uint8_t differs[GROUP];
        uint64_t mask = 0, eight;
        for (int i = 0; i < GROUP; i++) differs[i] = row[start + i] != 0;
        for (int i = 0; i < GROUP; i += 8) {
            memcpy(&eight, differs + i, 8);
            mask |= (eight * 0x0102040810204080 >> 56) << i; /* the last bits of eight bytes */
        }
        for (; mask; mask &= mask - 1) found[n_found++] = start + __builtin_ctzll(mask);
    }
    for (; start < end; start++)
        if (row[start] != 0) found[n_found++] = start;
    return n_found;
}

static int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static long scan_share(const float *latents, const int32_t *patch_of_token, const float *edges,
                       double *total, float *maximum, int32_t *n_active, int32_t *n_above,
                       float *peak, int32_t *peak_patch, int64_t *counts, float threshold,
                       long n_bins, long n_images, long n_tokens, long d_sae, long begin,
                       long end) {
    int32_t found[AT_ONCE];
    /* the bits of a positive float, read as an integer, are nearly its logarithm */
    int32_t lowest = bits_of(edges[0]);
    float bins_per_bit = (float)n_bins / (bits_of(edges[n_bins]) - lowest);
    for (long start = begin; start < end; start += AT_ONCE)
        for (long row = 0; row < n_images * n_tokens; row++) {
            const float *latent = latents + row * d_sae;
            long stop = start + AT_ONCE < end ? start + AT_ONCE : end;
            long n_found = find_nonzero(latent, start, stop, found);
            int32_t patch = patch_of_token[row % n_tokens];
            for (long i = 0; i < n_found; i++) {
                float value = latent[found[i]];
                long cell = row / n_tokens * d_sae + found[i];
                total[cell] += value;
                if (!(value > 0)) continue;
                n_active[cell]++;
                n_above[cell] += value > threshold;
                maximum[cell] = value > maximum[cell] ? value : maximum[cell];
                float on_patch = patch < 0 ? 0 : value;
                int higher = on_patch > peak[cell];
                peak[cell] = higher ? on_patch : peak[cell];
                peak_patch[cell] = higher ? patch : peak_patch[cell];

                long bin = ((float)bits_of(value) - lowest) * bins_per_bit;
                bin = bin < 0 ? 0 : bin >= n_bins ? n_bins - 1 : bin;
                while (bin < n_bins - 1 && value >= edges[bin + 1]) bin++;
                while (bin > 0 && value < edges[bin]) bin--;
                counts[found[i] * n_bins + bin]++;
            }
        }
    return 0;
}

/* latents[image][token][latent]. The results from total to peak_patch, [image][latent] each, come
 * as zeros, and peak_patch as -1. peak is the largest activation on a patch. Positive latents are
 * added to counts[latent][bin]: a bin reaches from its edge up to the next one; the first and the
 * last also take what lies beyond. */
long scan_tokens(const float *latents, const int32_t *patch_of_token, const float *edges,
                 double *total, float *maximum, int32_t *n_active, int32_t *n_above, float *peak,
                 int32_t *peak_patch, int64_t *counts, float threshold, long n_bins,
                 long n_images, long n_tokens, long d_sae, long threads) {
    SHARE_OUT(d_sae, threads,
              scan_share(latents, patch_of_token, edges, total, maximum, n_active, n_above, peak,
                         peak_patch, counts, threshold, n_bins, n_images, n_tokens, d_sae, begin,
                         end));
}
