/* Nested top-k selection for CPUs, in float32. Compiled and called by nested_topk_selection.py.
 *
 * A positive float's bits, read as an integer, are ordered as the float is. One histogram of their
 * leading bits says for every k in which bin the k-th largest latent lies, and only the latents of
 * these few bins are looked at again.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_kernels.h"

#define UNUSED 255
#define BIN_SHIFT 19 /* bins are 1/16 of an octave wide */
#define N_BINS (1 << (31 - BIN_SHIFT))

/* The value that k of those in the bin reach, and how many in the bin are greater. */
static uint32_t threshold(const uint32_t *value, long n, uint32_t bin, long k, long *n_greater) {
    static const int shifts[] = {BIN_SHIFT, 10, 0};
    uint32_t prefix = bin;
    *n_greater = 0;
    for (int digit = 1; digit < 3; digit++) {
        int shift = shifts[digit], width = shifts[digit - 1] - shift, count[1024] = {0};
        for (long i = 0; i < n; i++)
            if (value[i] >> shifts[digit - 1] == prefix)
                count[value[i] >> shift & ((1u << width) - 1)]++;
        long next = (1L << width) - 1;
        for (; *n_greater + count[next] < k; next--) *n_greater += count[next];
        prefix = prefix << width | next;
    }
    return prefix;
}

/* For each level that keeps fewer than n latents: the value that its latents reach at least, and
 * how many of the latents that just reach it are its own. True if not all are. */
static int find_thresholds(const uint32_t *value, long n, const int64_t *k_list, long n_levels,
                           int *count, uint32_t *close, uint32_t *at, long *ties) {
    uint8_t divided[N_BINS] = {0}; /* whether a level keeps some latents of a bin and not others */
    long bins[UNUSED], above[UNUSED], n_close = 0, n_above = 0, bin = N_BINS - 1;
    int tied = 0;
    memset(count, 0, N_BINS * sizeof *count);
    for (long i = 0; i < n; i++) count[value[i] >> BIN_SHIFT]++;
    for (long l = 0; l < n_levels && k_list[l] < n; l++) {
        for (; n_above + count[bin] < k_list[l]; bin--) n_above += count[bin];
        divided[bin] = 1, bins[l] = bin, above[l] = n_above;
    }
    for (long i = 0; i < n; i++) {
        close[n_close] = value[i];
        n_close += divided[value[i] >> BIN_SHIFT];
    }
    for (long l = 0; l < n_levels && k_list[l] < n; l++) {
        long n_greater, n_equal = 0;
        at[l] = threshold(close, n_close, bins[l], k_list[l] - above[l], &n_greater);
        ties[l] = k_list[l] - above[l] - n_greater;
        for (long i = 0; i < n_close; i++) n_equal += close[i] == at[l];
        tied |= n_equal > ties[l];
    }
    return tied;
}

/* first_level[row][s] = number of the first k of the list among whose largest latents s is, or
 * UNUSED. Of equal latents the first are kept. Returns the largest number of active latents of a
 * row, or -1 if memory runs out. */
static long select_share(const float *acts, uint8_t *first_level, const int64_t *k_list,
                         long n_levels, long d_sae, long begin, long end) {
    uint32_t *bits = malloc(d_sae * sizeof *bits), *active = malloc((d_sae + 1) * sizeof *active);
    uint32_t *close = malloc((d_sae + 1) * sizeof *close), at[UNUSED];
    int *count = malloc(N_BINS * sizeof *count);
    long ties[UNUSED], seen[UNUSED];
    int most_active = 0, failed = !bits || !active || !close || !count;
    for (long r = begin; r < end && !failed; r++) {
        uint8_t *level = first_level + r * d_sae;
        const float *row = acts + r * d_sae;
        long n = 0;
        memcpy(bits, row, d_sae * sizeof *bits);
        for (long s = 0; s < d_sae; s++) /* NaN stays, without its sign */
            bits[s] &= -(uint32_t) !(row[s] <= 0) & 0x7fffffff;
        for (long s = 0; s < d_sae; s++) {
            active[n] = bits[s];
            n += bits[s] > 0;
        }
        if (n > most_active) most_active = n;
        for (long l = 0; l < n_levels; l++) at[l] = 1, ties[l] = d_sae, seen[l] = 0;
        int tied = find_thresholds(active, n, k_list, n_levels, count, close, at, ties);
        memset(level, 0, d_sae);
        for (long l = 0; l < n_levels; l++)
            for (long s = 0; s < d_sae; s++) level[s] += bits[s] < at[l];
        for (long s = 0; s < d_sae; s++)
            if (level[s] == n_levels) level[s] = UNUSED;
        for (long s = 0; s < d_sae && tied; s++) {
            long l = level[s];
            if (l == UNUSED || bits[s] != at[l]) continue;
            long n_before = seen[l]++;
            while (l < n_levels && bits[s] == at[l] && n_before >= ties[l]) l++;
            level[s] = l < n_levels ? l : UNUSED;
        }
    }
    free(bits), free(active), free(close), free(count);
    return failed ? -1 : most_active;
}

long select_levels(const float *acts, uint8_t *first_level, const int64_t *k_list, long n_levels,
                   long d_sae, long n_rows, long threads) {
    SHARE_OUT(n_rows, threads,
              select_share(acts, first_level, k_list, n_levels, d_sae, begin, end));
}

/* n_fired[s] = number of rows in which some level keeps s. */
static long count_share(const uint8_t *first_level, int32_t *n_fired, long n_rows, long d_sae,
                        long begin, long end) {
    memset(n_fired + begin, 0, (end - begin) * sizeof *n_fired);
    for (long r = 0; r < n_rows; r++)
        for (long s = begin; s < end; s++) n_fired[s] += first_level[r * d_sae + s] != UNUSED;
    return 0;
}

long count_kept(const uint8_t *first_level, int32_t *n_fired, long n_rows, long d_sae,
                long threads) {
    SHARE_OUT(d_sae, threads, count_share(first_level, n_fired, n_rows, d_sae, begin, end));
}
