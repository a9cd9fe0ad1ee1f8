/* The gradients of nested decoding, for CPUs. Compiled and called by nested_decoding.py.
 *
 * As nested_decoding.c does, they gather for very many short lists, here of the rows that use a
 * latent, from packed tables of one strip of columns. The strip of the decoder and of its gradient
 * are packed, too, since each table needs them anew. Arrays are contiguous;
 * first_level[row][latent] is at least n_levels where no level keeps the latent. Returns -1 if
 * memory runs out, else 0.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_kernels.h"
#include "strips.h"

#define ROW_TILE 1024L
#define LATENT_TILE 64L
#define LATENT_BLOCK 4096L
#define AHEAD 8 /* rows to be read or written soon */
#define FOUR _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++)

/* Lists of the rows that use a latent, for some latents one after another: where the table has the
 * row at the latent's level, the latent's act there, and its gradient. */
struct uses {
    uint16_t *source;
    REAL *act, *dot;
};

/* A strip of a latent's decoder row, and of what is added up for it. */
struct latent {
    vec w[VECTORS], total[VECTORS];
};

/* What there is to be listed: of which rows and latents, from a first one on. */
struct part {
    const REAL *acts;
    const uint8_t *first_level;
    long rows, latents, d_sae, n_levels;
    int shift; /* the table has room for 1 << shift levels of each row */
};

#ifdef COMPRESSES
/* Rows become columns. */
static inline void transpose(__m512i v[16]) {
    __m512i u[16];
    _Pragma("GCC unroll 8") for (int i = 0; i < 16; i += 2) {
        u[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        u[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(u[i], u[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(u[i], u[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(u[i + 1], u[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(u[i + 1], u[i + 3]);
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) {
        int from = i / 4 * 8 + i % 4;
        u[from] = _mm512_shuffle_i32x4(v[from], v[from + 4], 0x88);
        u[from + 4] = _mm512_shuffle_i32x4(v[from], v[from + 4], 0xdd);
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_i32x4(u[i], u[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(u[i], u[i + 8], 0xdd);
    }
}

/* list_uses for 16 latents or fewer. It makes the lists apart, since they grow together. */
static int list_sixteen(struct part part, struct uses uses, struct uses apart, int *start) {
    const long room = ROW_TILE + OVERRUN;
    __mmask16 columns = first_lanes(part.latents);
    int n_uses[16] = {0}, n = 0;
    for (long top = 0; top < part.rows; top += 16) {
        __mmask16 there = first_lanes(part.rows - top);
        __m512i act[16], level[16], row = _mm512_add_epi32(ascending(), _mm512_set1_epi32(top));
        for (long r = 0; r < 16; r++) {
            long place = smaller(top + r, part.rows - 1) * part.d_sae;
            __builtin_prefetch(part.acts + place + 16 * part.d_sae);
            __builtin_prefetch(part.first_level + place + 16 * part.d_sae);
            act[r] = _mm512_maskz_loadu_epi32(columns, part.acts + place);
            level[r] =
                _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(columns, part.first_level + place));
        }
        transpose(act), transpose(level);
        _Pragma("GCC unroll 16") for (long s = 0; s < 16; s++) {
            __mmask16 used =
                _mm512_mask_cmplt_epu32_mask(there, level[s], _mm512_set1_epi32(part.n_levels));
            __m512i source = _mm512_add_epi32(_mm512_slli_epi32(row, part.shift), level[s]);
            _mm512_storeu_si512(apart.act + s * room + n_uses[s],
                                _mm512_maskz_compress_epi32(used, act[s]));
            n_uses[s] += list_lanes(apart.source + s * room + n_uses[s], used, source);
        }
    }
    for (long s = 0; s < part.latents; n += n_uses[s++]) {
        memcpy(uses.source + n, apart.source + s * room, n_uses[s] * sizeof *uses.source);
        memcpy(uses.act + n, apart.act + s * room, n_uses[s] * sizeof *uses.act);
        start[s] = n;
    }
    return n;
}

/* spread_dots for float. */
static void spread_floats(struct part part, const float *dot, const int *start, float *grad_acts) {
    __m512i next[LATENT_TILE / 16];
    for (long i = 0; i < LATENT_TILE / 16; i++)
        next[i] = _mm512_maskz_loadu_epi32(first_lanes(part.latents - 16 * i), start + 16 * i);
    for (long r = 0; r < part.rows; r++)
        for (long s = 0; s < part.latents; s += 16) {
            __mmask16 columns = first_lanes(part.latents - s);
            float *out = grad_acts + r * part.d_sae + s;
            const uint8_t *levels = part.first_level + r * part.d_sae + s;
            __builtin_prefetch(out + AHEAD * part.d_sae, 1);
            __builtin_prefetch(levels + AHEAD * part.d_sae);
            __m128i level = _mm_maskz_loadu_epi8(columns, levels);
            __mmask16 used =
                _mm_mask_cmplt_epu8_mask(columns, level, _mm_set1_epi8(part.n_levels));
            __m512 of_row =
                _mm512_mask_i32gather_ps(_mm512_setzero_ps(), used, next[s / 16], dot, 4);
            _mm512_mask_storeu_ps(out, columns, of_row);
            next[s / 16] = _mm512_mask_add_epi32(next[s / 16], used, next[s / 16],
                                                 _mm512_set1_epi32(1));
        }
}
#endif

/* The lists of a part's latents, from start on. Returns how long they are together. */
static int list_uses(struct part part, struct uses uses, struct uses apart, int *start) {
    int n = 0;
    (void)apart;
#ifdef COMPRESSES
    for (; sizeof(REAL) == 4 && part.latents > 0; start += 16, part.latents -= 16) {
        struct part few = part;
        few.latents = smaller(16, part.latents);
        int n_here = list_sixteen(
            few, (struct uses){uses.source + n, uses.act + n, uses.dot}, apart, start);
        for (long s = 0; s < few.latents; s++) start[s] += n;
        n += n_here, part.acts += 16, part.first_level += 16;
    }
#endif
    for (long s = 0; s < part.latents; s++) {
        start[s] = n;
        for (long r = 0; r < part.rows; r++) {
            uint8_t level = part.first_level[r * part.d_sae + s];
            uses.source[n] = (r << part.shift) + level;
            uses.act[n] = part.acts[r * part.d_sae + s];
            n += level < part.n_levels;
        }
    }
    return n;
}

/* The gradients of such lists for LATENT_TILE latents or fewer, each to its row and latent; zero
 * where there is none. tile is room for as many. */
static void spread_dots(struct part part, struct uses uses, const int *start, REAL *tile,
                        REAL *grad_acts) {
#ifdef COMPRESSES
    if (sizeof(REAL) == 4) {
        spread_floats(part, (const float *)uses.dot, start, (float *)grad_acts);
        return;
    }
#endif
    memset(tile, 0, part.rows * LATENT_TILE * sizeof *tile);
    for (long s = 0; s < part.latents; s++)
        for (int n = start[s]; n < start[s + 1]; n++)
            tile[(uses.source[n] >> part.shift) * LATENT_TILE + s] = uses.dot[n];
    for (long r = 0; r < part.rows; r++)
        memcpy(grad_acts + r * part.d_sae, tile + r * LATENT_TILE, part.latents * sizeof *tile);
}

/* The sums of four vectors' lanes, set or added. */
static inline void add_sums(const vec v[4], int adds, REAL *to) {
#ifdef COMPRESSES
    if (sizeof(REAL) == 4) {
        __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
        __m512d ab = (__m512d)(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
        __m512d cd = (__m512d)(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
        __m512 abcd = (__m512)_mm512_unpacklo_pd(ab, cd) + (__m512)_mm512_unpackhi_pd(ab, cd);
        quad sums = fold((vec)abcd), before;
        memcpy(&before, to, sizeof before);
        if (adds) sums += before;
        memcpy(to, &sums, sizeof sums);
        return;
    }
#endif
    FOUR {
        REAL lanes = sum(v[k]);
        to[k] = adds ? to[k] + lanes : lanes;
    }
}

/* W . g; and total += act * g. */
static inline vec multiply(const vec *g, const vec *w, REAL act, vec *total) {
    vec even = {0}, odd = {0};
    EACH_VECTOR {
        if (i % 2) odd += w[i] * g[i];
        else even += w[i] * g[i];
        total[i] += act * g[i];
    }
    return even + odd;
}

/* With g = grad[first level of (row, s)][row] for each latent s that a row uses, for latents begin
 * to end and rows top to bottom: grad_acts[row][s] = W_dec[s] . g, and grad_W_dec[s] = sum of
 * acts[row][s] * g, added to what rows above top made. */
static long gradient_tile(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                          const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows,
                          long d_sae, long d_in, long n_levels, long top, long bottom, long begin,
                          long end) {
    long n_tables = parts((bottom - top) * n_levels, TABLE_ROWS), latents = end - begin;
    long most = (bottom - top + n_tables - 1) / n_tables, n_pairs = latents * (bottom - top);
    int shift = 0, n = 0, *start;
    while (1 << shift < n_levels) shift++;
    vec *table = aligned_alloc(VECTOR_BYTES, (most << shift) * VECTORS * VECTOR_BYTES);
    struct uses uses = {malloc((n_pairs + 1) * sizeof *uses.source),
                        malloc((n_pairs + 1) * sizeof(REAL)), malloc((n_pairs + 1) * sizeof(REAL))};
    struct uses apart = {malloc(16 * (ROW_TILE + OVERRUN) * sizeof *uses.source),
                         malloc(16 * (ROW_TILE + OVERRUN) * sizeof(REAL)), 0};
    int *list = malloc((n_tables * latents + 1) * sizeof *list); /* where each starts */
    REAL *tile = malloc(most * LATENT_TILE * sizeof *tile);
    struct latent *own = aligned_alloc(VECTOR_BYTES, latents * sizeof *own);
    int failed = !table || !uses.source || !uses.act || !uses.dot || !apart.source || !apart.act ||
                 !list || !tile;

    start = list;
    for (long first = top; first < bottom && !failed; first += most, start += latents) {
        long place = first * d_sae + begin, rows = smaller(most, bottom - first);
        struct part part = {acts + place, first_level + place, rows, latents, d_sae, n_levels,
                            shift};
        int n_here = list_uses(part, (struct uses){uses.source + n, uses.act + n, 0}, apart, start);
        for (long s = 0; s < latents; s++) start[s] += n;
        n += n_here;
    }
    if (!failed) *start = n;
    for (long column = 0; column < d_in && !failed; column += STRIP) {
        const int *at = list;
        for (long s = 0; s < latents; s++) {
            const REAL *w_row = W_dec + (begin + s) * d_in, *before = grad_W_dec + (begin + s) * d_in;
            fetch(w_row + AHEAD * d_in, column);
            load(own[s].w, w_row, column, d_in);
            if (top) load(own[s].total, before, column, d_in);
            else EACH_VECTOR own[s].total[i] = (vec){0};
        }
        for (long first = top; first < bottom; first += most) {
            for (long l = 0; l < n_levels; l++)
                for (long r = 0; r < smaller(most, bottom - first); r++) {
                    const REAL *row = grad + (l * n_rows + first + r) * d_in;
                    fetch(row + AHEAD * d_in, column);
                    load(table + ((r << shift) + l) * VECTORS, row, column, d_in);
                }
            for (long s = 0; s < latents; s++, at++) {
                vec w[VECTORS], total[VECTORS], lanes[4];
                EACH_VECTOR w[i] = own[s].w[i], total[i] = own[s].total[i];
                int u = at[0], adds = column > 0;
                for (; u + 4 <= at[1]; u += 4) {
                    FOUR lanes[k] = multiply(table + (long)uses.source[u + k] * VECTORS, w,
                                             uses.act[u + k], total);
                    add_sums(lanes, adds, uses.dot + u);
                }
                for (; u < at[1]; u++) {
                    REAL dot = sum(multiply(table + (long)uses.source[u] * VECTORS, w, uses.act[u],
                                            total));
                    uses.dot[u] = adds ? uses.dot[u] + dot : dot;
                }
                EACH_VECTOR own[s].total[i] = total[i];
            }
        }
        for (long s = 0; s < latents; s++)
            store(grad_W_dec + (begin + s) * d_in, own[s].total, column, d_in);
    }
    start = list;
    for (long first = top; first < bottom && !failed; first += most)
        for (long s = begin; s < end; s += LATENT_TILE) {
            long place = first * d_sae + s, rows = smaller(most, bottom - first);
            long width = smaller(LATENT_TILE, end - s);
            struct part part = {acts + place, first_level + place, rows, width, d_sae, n_levels,
                                shift};
            spread_dots(part, uses, start, tile, grad_acts + place);
            start += width;
        }
    free(table), free(uses.source), free(uses.act), free(uses.dot), free(apart.source);
    free(apart.act), free(list), free(tile), free(own);
    return -failed;
}

/* The same for as many rows and latents as it may be: the working space is that of a tile. */
static long gradient_share(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                           const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows,
                           long d_sae, long d_in, long n_levels, long begin, long end) {
    if (n_rows == 0) memset(grad_W_dec + begin * d_in, 0, (end - begin) * d_in * sizeof(REAL));
    for (; begin < end; begin += LATENT_BLOCK)
        for (long top = 0; top < n_rows; top += ROW_TILE)
            if (gradient_tile(acts, first_level, W_dec, grad, grad_acts, grad_W_dec, n_rows, d_sae,
                              d_in, n_levels, top, smaller(top + ROW_TILE, n_rows), begin,
                              smaller(begin + LATENT_BLOCK, end)))
                return -1;
    return 0;
}

long decode_gradients(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                      const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows, long d_sae,
                      long d_in, long n_levels, long threads) {
    SHARE_OUT(d_sae, threads, gradient_share(acts, first_level, W_dec, grad, grad_acts, grad_W_dec,
                                             n_rows, d_sae, d_in, n_levels, begin, end));
}
