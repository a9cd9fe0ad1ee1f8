/* What gradients do with rows that they gather from a table: for the C files beside this one. */
#include <stdint.h>
#include <string.h>

#include "strips.h"

#define TOGETHER 8 /* rows that are worked on together, or half as many */
#define EACH_ROW _Pragma("GCC unroll 8") for (int k = 0; k < n; k++)

#ifdef COMPRESSES
/* The sums of four vectors' lanes, each over four places. */
static inline __m512 merge_four(const vec *v) {
    __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
    __m512 ab = _mm512_mask_blend_ps(0xcccc, a, b) + _mm512_shuffle_ps(a, b, 0x4e);
    __m512 cd = _mm512_mask_blend_ps(0xcccc, c, d) + _mm512_shuffle_ps(c, d, 0x4e);
    return _mm512_shuffle_ps(ab, cd, 0x88) + _mm512_shuffle_ps(ab, cd, 0xdd);
}

/* The same, of the first four, then of the other. */
static inline __m256 merge_eight(const vec *v) {
    __m512 a = merge_four(v), b = merge_four(v + 4);
    __m512 ab = _mm512_mask_blend_ps(0xff00, a, b) + _mm512_shuffle_f32x4(a, b, 0x4e);
    ab = _mm512_shuffle_f32x4(ab, ab, 0xd8);
    return _mm512_castps512_ps256(ab) + _mm512_extractf32x8_ps(ab, 1);
}
#endif

/* The sums of n vectors' lanes, set or added. */
static inline void add_sums(const vec *v, int n, int adds, REAL *to) {
#ifdef COMPRESSES
    if (sizeof(REAL) == 4 && n == 8) {
        __m256 sums = merge_eight(v);
        if (adds) sums += _mm256_loadu_ps((float *)to);
        _mm256_storeu_ps((float *)to, sums);
        return;
    }
    if (sizeof(REAL) == 4 && n == 4) {
        quad sums = fold((vec)merge_four(v)), before;
        memcpy(&before, to, sizeof before);
        if (adds) sums += before;
        memcpy(to, &sums, sizeof sums);
        return;
    }
#endif
    EACH_ROW {
        REAL lanes = sum(v[k]);
        to[k] = adds ? to[k] + lanes : lanes;
    }
}

/* Of n rows of a table: dot = w . g, set or added; and total += act * g. */
static inline __attribute__((always_inline)) void multiply(const vec *table, const uint16_t *row,
                                                           const REAL *act, REAL *dot, int n,
                                                           int adds, const vec *w, vec *total) {
    vec lanes[TOGETHER];
    EACH_ROW {
        const vec *g = table + (long)row[k] * VECTORS;
        REAL h = act[k];
        vec even = w[0] * g[0], odd = w[1] * g[1];
        EACH_VECTOR {
            if (i > 1 && i % 2) odd += w[i] * g[i];
            else if (i > 1) even += w[i] * g[i];
            total[i] += h * g[i];
        }
        lanes[k] = even + odd;
    }
    add_sums(lanes, n, adds, dot);
}
