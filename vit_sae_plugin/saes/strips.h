/* Strips of a row's columns, held in vector registers: for the C files beside this one.
 *
 * REAL, float or double, is given on the compiler's command line.
 */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define COMPRESSES /* the processor lists the set bits of a mask by itself */
#endif
#define OVERRUN 16 /* what such a list may write past its end */

#ifdef __AVX512F__
#define VECTOR_BYTES 64
#define VECTORS 8
#else
#define VECTOR_BYTES 32
#define VECTORS 6
#endif
#define LANES (VECTOR_BYTES / (long)sizeof(REAL))
#define STRIP (LANES * VECTORS)
/* Rows of a strip that the second-level cache holds. */
#define TABLE_ROWS ((512L << 10) / (VECTORS * VECTOR_BYTES))
#define EACH_OF_QUAD _Pragma("GCC unroll 4") for (int i = 0; i < 16 / (int)sizeof(REAL); i++)
#define EACH_VECTOR _Pragma("GCC unroll 16") for (int i = 0; i < VECTORS; i++)

typedef REAL vec __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL quad __attribute__((vector_size(16)));

static inline long smaller(long a, long b) { return a < b ? a : b; }

/* How many parts of about this size n has. */
static inline long parts(long n, long size) { return n < size ? 1 : (n + size / 2) / size; }

/* A strip of a row's columns, with zeros past the row's end. */
static inline void load(vec *strip, const REAL *row, long column, long width) {
    if (width - column >= STRIP) { /* of a known size, so that it stays in registers */
        memcpy(strip, row + column, VECTORS * VECTOR_BYTES);
    } else {
        memset(strip, 0, VECTORS * VECTOR_BYTES);
        memcpy(strip, row + column, (width - column) * sizeof(REAL));
    }
}

static inline void store(REAL *row, const vec *strip, long column, long width) {
    if (width - column >= STRIP) memcpy(row + column, strip, VECTORS * VECTOR_BYTES);
    else memcpy(row + column, strip, (width - column) * sizeof(REAL));
}

/* Rows lie a page apart or more, where the processor doesn't look ahead by itself. */
static inline void fetch(const REAL *row, long column) {
    EACH_VECTOR __builtin_prefetch(row + column + i * LANES);
}

/* Lanes that add up to the sum of all. */
static inline quad fold(vec v) {
    quad part[VECTOR_BYTES / 16];
    memcpy(part, &v, sizeof v);
    _Pragma("GCC unroll 4") for (int i = 1; i < VECTOR_BYTES / 16; i++) part[0] += part[i];
    return part[0];
}

static inline REAL sum(vec v) {
    quad part = fold(v);
    REAL total = 0;
    EACH_OF_QUAD total += part[i];
    return total;
}

#ifdef COMPRESSES
/* 0, 1, 2 ... */
static inline __m512i ascending(void) {
    return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}

/* The first n lanes of sixteen. */
static inline __mmask16 first_lanes(long n) { return n <= 0 ? 0 : n < 16 ? (1 << n) - 1 : 0xffff; }

/* The chosen lanes one after another, as short numbers. Returns how many there are. */
static inline int list_lanes(uint16_t *list, __mmask16 chosen, __m512i lanes) {
    lanes = _mm512_maskz_compress_epi32(chosen, lanes);
    _mm256_storeu_si256((__m256i *)list, _mm512_cvtepi32_epi16(lanes));
    return __builtin_popcount(chosen);
}
#endif
