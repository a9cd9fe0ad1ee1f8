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
#include "gathered_products.h"

#define ROW_TILE 1024L
#define LATENT_TILE 64L
#define LATENT_BLOCK 2304L /* about */
#define AHEAD 8 /* rows to be read or written soon */
/* Sources in a table. The lists and what they add up need room beside it. */
#define MOST_SOURCES (TABLE_ROWS * 3 / 4)

/* Lists of the rows that use a latent, for some latents one after another: where the table has the
 * row at the latent's level, the latent's act there, and its gradient. The last use stands there
 * again, with an act of zero, until there are a multiple of TOGETHER / 2. */
struct uses {
    uint16_t *source;
    REAL *act, *dot;
};

/* A strip of a latent's decoder row, and of its gradient so far. */
struct latent {
    vec w[VECTORS], total[VECTORS];
};

/* What there is to be listed: of which rows and latents, from a first one on. */
struct part {
    const REAL *acts;
    const uint8_t *first_level;
    long rows, latents, d_sae, n_levels;
    long most; /* rows of a table, which has them once for each level */
};

/* Repeats the last of n uses. Returns how many there are then. */
static inline int fill_up(uint16_t *source, REAL *act, int n) {
    for (; n % (TOGETHER / 2); n++) source[n] = source[n - 1], act[n] = 0;
    return n;
}

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
            __m512i source =
                _mm512_add_epi32(row, _mm512_mullo_epi32(level[s], _mm512_set1_epi32(part.most)));
            _mm512_storeu_si512(apart.act + s * room + n_uses[s],
                                _mm512_maskz_compress_epi32(used, act[s]));
            n_uses[s] += list_lanes(apart.source + s * room + n_uses[s], used, source);
        }
    }
    for (long s = 0; s < part.latents; n += n_uses[s++]) {
        n_uses[s] = fill_up(apart.source + s * room, apart.act + s * room, n_uses[s]);
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
        int n_uses = 0;
        start[s] = n;
        for (long r = 0; r < part.rows; r++) {
            uint8_t level = part.first_level[r * part.d_sae + s];
            if (level >= part.n_levels) continue;
            uses.source[n + n_uses] = r + level * part.most;
            uses.act[n + n_uses++] = part.acts[r * part.d_sae + s];
        }
        n += fill_up(uses.source + n, uses.act + n, n_uses);
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
            tile[uses.source[n] % part.most * LATENT_TILE + s] = uses.dot[n];
    for (long r = 0; r < part.rows; r++)
        memcpy(grad_acts + r * part.d_sae, tile + r * LATENT_TILE, part.latents * sizeof *tile);
}

/* With g = grad[first level of (row, s)][row] for each latent s that a row uses, for latents begin
 * to end and rows top to bottom: grad_acts[row][s] = W_dec[s] . g, and grad_W_dec[s] = sum of
 * acts[row][s] * g, added to what rows above top made. */
static long gradient_tile(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                          const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows,
                          long d_sae, long d_in, long n_levels, long top, long bottom, long begin,
                          long end) {
    long n_tables = parts((bottom - top) * n_levels, MOST_SOURCES), latents = end - begin;
    long most = (bottom - top + n_tables - 1) / n_tables;
    long n_pairs = latents * (bottom - top + n_tables * (TOGETHER / 2 - 1));
    int n = 0, *start;
    vec *table = aligned_alloc(VECTOR_BYTES, most * n_levels * VECTORS * VECTOR_BYTES);
    struct uses uses = {malloc((n_pairs + 1) * sizeof *uses.source),
                        malloc((n_pairs + 1) * sizeof(REAL)), malloc((n_pairs + 1) * sizeof(REAL))};
    struct uses apart = {malloc(16 * (ROW_TILE + OVERRUN) * sizeof *uses.source),
                         malloc(16 * (ROW_TILE + OVERRUN) * sizeof(REAL)), 0};
    int *list = malloc((n_tables * latents + 1) * sizeof *list); /* where each starts */
    REAL *tile = malloc(most * LATENT_TILE * sizeof *tile);
    struct latent *own = aligned_alloc(VECTOR_BYTES, latents * sizeof *own);
    int failed = !table || !uses.source || !uses.act || !uses.dot || !apart.source || !apart.act ||
                 !list || !tile || !own;

    start = list;
    for (long first = top; first < bottom && !failed; first += most, start += latents) {
        long place = first * d_sae + begin, rows = smaller(most, bottom - first);
        struct part part = {acts + place, first_level + place, rows, latents, d_sae, n_levels,
                            most};
        int n_here = list_uses(part, (struct uses){uses.source + n, uses.act + n, 0}, apart, start);
        for (long s = 0; s < latents; s++) start[s] += n;
        n += n_here;
    }
    if (!failed) *start = n;
    for (long column = 0; column < d_in && !failed; column += STRIP) {
        const int *at = list;
        for (long first = top; first < bottom; first += most) {
            int is_first = first == top, is_last = first + most >= bottom;
            for (long l = 0; l < n_levels; l++)
                for (long r = 0; r < smaller(most, bottom - first); r++) {
                    const REAL *row = grad + (l * n_rows + first + r) * d_in;
                    fetch(row + AHEAD * d_in, column);
                    load(table + (l * most + r) * VECTORS, row, column, d_in);
                }
            for (long s = 0; s < latents; s++, at++) {
                const REAL *w_row = W_dec + (begin + s) * d_in;
                REAL *out = grad_W_dec + (begin + s) * d_in;
                vec w[VECTORS], total[VECTORS];
                int u = at[0], adds = column > 0;
                if (is_first) {
                    fetch(w_row + AHEAD * d_in, column);
                    load(w, w_row, column, d_in);
                    if (top) load(total, out, column, d_in);
                    else EACH_VECTOR total[i] = (vec){0};
                } else EACH_VECTOR w[i] = own[s].w[i], total[i] = own[s].total[i];
                /* one branch fewer in the loop than with the rest inside: a tenth of the time */
                for (; u + TOGETHER <= at[1]; u += TOGETHER)
                    multiply(table, uses.source + u, uses.act + u, uses.dot + u, TOGETHER, adds, w,
                             total);
                if (u < at[1])
                    multiply(table, uses.source + u, uses.act + u, uses.dot + u, TOGETHER / 2, adds,
                             w, total);
                if (is_first) EACH_VECTOR own[s].w[i] = w[i];
                if (is_last) store(out, total, column, d_in);
                else EACH_VECTOR own[s].total[i] = total[i];
            }
        }
    }
    start = list;
    for (long first = top; first < bottom && !failed; first += most)
        for (long s = begin; s < end; s += LATENT_TILE) {
            long place = first * d_sae + s, rows = smaller(most, bottom - first);
            long width = smaller(LATENT_TILE, end - s);
            struct part part = {acts + place, first_level + place, rows, width, d_sae, n_levels,
                                most};
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
    long n_blocks = parts(end - begin, LATENT_BLOCK);
    long width = (end - begin + n_blocks - 1) / n_blocks;
    for (; begin < end; begin += width)
        for (long top = 0; top < n_rows; top += ROW_TILE)
            if (gradient_tile(acts, first_level, W_dec, grad, grad_acts, grad_W_dec, n_rows, d_sae,
                              d_in, n_levels, top, smaller(top + ROW_TILE, n_rows), begin,
                              smaller(begin + width, end)))
                return -1;
    return 0;
}

long decode_gradients(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                      const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows, long d_sae,
                      long d_in, long n_levels, long threads) {
    SHARE_OUT(d_sae, threads, gradient_share(acts, first_level, W_dec, grad, grad_acts, grad_W_dec,
                                             n_rows, d_sae, d_in, n_levels, begin, end));
}
