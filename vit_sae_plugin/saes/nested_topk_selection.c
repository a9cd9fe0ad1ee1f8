/* Nested top-k selection for CPUs, in float32. Compiled and called by nested_topk_selection.py.
 *
 * A positive float's bits, read as an integer, are ordered as the float is. One histogram of their
 * leading bits says for every k in which bin the k-th largest latent lies, and only the latents of
 * this bin are looked at again.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_kernels.h"
#include "strips.h"

#define UNUSED 255
#define BIN_SHIFT 19 /* bins are 1/16 of an octave wide */
#define N_BINS (1 << (31 - BIN_SHIFT))

/* The bits of n latents, zero of those that are not positive, and the list of all others'. Returns
 * how long the list is. NaN stays, without its sign. */
static long list_positive(const float *row, long n, uint32_t *bits, uint32_t *list) {
    long n_listed = 0;
#ifdef COMPRESSES
    for (long s = 0; s < n; s += 16) {
        __m512 value = _mm512_maskz_loadu_ps(first_lanes(n - s), row + s);
        __mmask16 positive = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_NLE_UQ);
        __m512i own = _mm512_maskz_and_epi32(positive, _mm512_castps_si512(value),
                                             _mm512_set1_epi32(0x7fffffff));
        _mm512_mask_storeu_epi32(bits + s, first_lanes(n - s), own);
        _mm512_storeu_si512(list + n_listed, _mm512_maskz_compress_epi32(positive, own));
        n_listed += __builtin_popcount(positive);
    }
    return n_listed;
#endif
    memcpy(bits, row, n * sizeof *bits);
    for (long s = 0; s < n; s++) bits[s] &= -(uint32_t) !(row[s] <= 0) & 0x7fffffff;
    for (long s = 0; s < n; s++) {
        list[n_listed] = bits[s];
        n_listed += bits[s] > 0;
    }
    return n_listed;
}

/* Those of n values whose bits from shift on are prefix. Returns how many there are. The list may
 * be the values' own. */
static long list_beginning(const uint32_t *value, long n, int shift, uint32_t prefix,
                           uint32_t *list) {
    long n_listed = 0, i = 0;
#ifdef COMPRESSES
    for (; i < n; i += 16) {
        __m512i own = _mm512_maskz_loadu_epi32(first_lanes(n - i), value + i);
        __mmask16 equal = _mm512_mask_cmpeq_epi32_mask(
            first_lanes(n - i), _mm512_srli_epi32(own, shift), _mm512_set1_epi32(prefix));
        _mm512_storeu_si512(list + n_listed, _mm512_maskz_compress_epi32(equal, own));
        n_listed += __builtin_popcount(equal);
    }
#endif
    for (; i < n; i++) {
        list[n_listed] = value[i];
        n_listed += value[i] >> shift == prefix;
    }
    return n_listed;
}

/* The value that k of n reach, all from one bin, how many are greater and how many equal it. Fewer
 * and fewer of the values are kept. */
static uint32_t threshold(uint32_t *value, long n, uint32_t bin, long k, long *n_greater,
                          long *n_equal) {
    uint32_t prefix = bin;
    *n_greater = 0;
    for (int shift = BIN_SHIFT; shift > 0;) {
        int width = shift < 7 ? shift : 7, count[128] = {0}, next = (1 << width) - 1;
        shift -= width;
        for (long i = 0; i < n; i++) count[value[i] >> shift & ((1 << width) - 1)]++;
        for (; *n_greater + count[next] < k; next--) *n_greater += count[next];
        prefix = prefix << width | next;
        n = list_beginning(value, n, shift, prefix, value);
    }
    *n_equal = n;
    return prefix;
}

/* For each of n_cut levels, which keep fewer than all n latents: the value that its latents reach,
 * and how many of the latents that just reach it are its own. True if not all are. */
static int find_thresholds(const uint32_t *value, long n, const int64_t *k_list, long n_cut,
                           int *count, uint32_t *close, uint32_t *at, long *ties) {
    uint32_t largest = 0;
    int tied = 0;
    for (long i = 0; i < n; i++) largest = value[i] > largest ? value[i] : largest;
    long bin = largest >> BIN_SHIFT, n_above = 0;
    memset(count, 0, (bin + 1) * sizeof *count);
    for (long i = 0; i < n; i++) count[value[i] >> BIN_SHIFT]++;
    for (long l = 0; l < n_cut; l++) {
        for (; n_above + count[bin] < k_list[l]; bin--) n_above += count[bin];
        long n_close = list_beginning(value, n, BIN_SHIFT, bin, close), n_greater, n_equal;
        at[l] = threshold(close, n_close, bin, k_list[l] - n_above, &n_greater, &n_equal);
        ties[l] = k_list[l] - n_above - n_greater;
        tied |= n_equal > ties[l];
    }
    return tied;
}

/* The number of the first of n_cut thresholds that each of n latents reaches, n_cut of what reaches
 * none, UNUSED of what is zero. */
static void number_levels(const uint32_t *bits, long n, const uint32_t *at, long n_cut,
                          uint8_t *level) {
    long s = 0;
#ifdef COMPRESSES
    for (; s < n; s += 16) {
        __m512i own = _mm512_maskz_loadu_epi32(first_lanes(n - s), bits + s);
        __m128i number = _mm_setzero_si128();
        for (long l = 0; l < n_cut; l++) {
            __mmask16 below = _mm512_cmplt_epu32_mask(own, _mm512_set1_epi32(at[l]));
            number = _mm_mask_add_epi8(number, below, number, _mm_set1_epi8(1));
        }
        __mmask16 is_zero = _mm512_testn_epi32_mask(own, own);
        number = _mm_mask_mov_epi8(number, is_zero, _mm_set1_epi8(UNUSED));
        _mm_mask_storeu_epi8(level + s, first_lanes(n - s), number);
    }
#endif
    if (s < n) memset(level, 0, n);
    for (long l = 0; l < n_cut; l++)
        for (long i = s; i < n; i++) level[i] += bits[i] < at[l];
    for (; s < n; s++) level[s] |= -(bits[s] == 0);
}

/* first_level[row][s] = number of the first k of the list among whose largest latents s is, or
 * UNUSED. Of equal latents the first are kept. Returns the largest number of active latents of a
 * row, or -1 if memory runs out. */
static long select_share(const float *acts, uint8_t *first_level, const int64_t *k_list,
                         long n_levels, long d_sae, long begin, long end) {
    uint32_t *bits = malloc(d_sae * sizeof *bits);
    uint32_t *active = malloc((d_sae + OVERRUN) * sizeof *active);
    uint32_t *close = malloc((d_sae + OVERRUN) * sizeof *close), at[UNUSED];
    int *count = malloc(N_BINS * sizeof *count);
    long ties[UNUSED], seen[UNUSED];
    int most_active = 0, failed = !bits || !active || !close || !count;
    for (long r = begin; r < end && !failed; r++) {
        uint8_t *level = first_level + r * d_sae;
        long n = list_positive(acts + r * d_sae, d_sae, bits, active), n_cut = 0;
        if (n > most_active) most_active = n;
        while (n_cut < n_levels && k_list[n_cut] < n) seen[n_cut++] = 0;
        int tied = find_thresholds(active, n, k_list, n_cut, count, close, at, ties);
        number_levels(bits, d_sae, at, n_cut, level);
        if (n_cut == n_levels)
            for (long s = 0; s < d_sae; s++) level[s] = level[s] == n_levels ? UNUSED : level[s];
        for (long s = 0; s < d_sae && tied; s++) {
            long l = level[s];
            if (l >= n_cut || bits[s] != at[l]) continue;
            long n_before = seen[l]++;
            while (l < n_cut && bits[s] == at[l] && n_before >= ties[l]) l++;
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
