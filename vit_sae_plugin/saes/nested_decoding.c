/* The sparse products of nested decoding, for CPUs. Compiled and called by nested_decoding.py.
 *
 * Each product gathers rows for very many short lists of latents. Both functions keep what they
 * gather from in the second-level cache, as a packed table of one strip of columns, and what they
 * add up in registers for the length of a list. All tables of a strip follow one another, so that
 * sums which go on from table to table are still in some cache. Arrays are contiguous;
 * first_level[row][latent] is at least n_levels where no level keeps the latent. They return -1 if
 * memory runs out, else 0.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define COMPRESSES /* the processor lists the set bits of a mask by itself */
#endif

#include "cpu_kernels.h"
#include "strips.h"

#define MOST_ROWS (TABLE_ROWS * 3 / 2) /* of a table; not all are looked up equally often */
#define MOST_LISTED (1L << 22)         /* row-latent pairs for which decoding makes room */
#define DECODED_ROWS 512L
#define FEW_LEVELS 16
#define OVERRUN 16
#define ROW_TILE 1024L
#define LATENT_TILE 64L
#define LATENT_BLOCK 4096L

/* The latents of each level, level after level, and where each level's start; of n latents, whose
 * levels are given. Returns how many there are. latent has room for OVERRUN more than n. */
static long list_levels(const uint8_t *level, long n, long n_levels, uint16_t *latent, int *start,
                        uint16_t *active) {
#ifdef COMPRESSES
    const __m512i ascending =
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    long n_listed = 0;
    for (long l = 0; l < n_levels && n_levels <= FEW_LEVELS; l++) {
        start[l] = n_listed;
        for (long s = 0; s < n; s += 16) {
            __mmask16 own = n - s < 16 ? (1 << (n - s)) - 1 : -1;
            own = _mm_mask_cmpeq_epi8_mask(own, _mm_maskz_loadu_epi8(own, level + s),
                                           _mm_set1_epi8(l));
            __m512i which = _mm512_add_epi32(ascending, _mm512_set1_epi32(s));
            which = _mm512_maskz_compress_epi32(own, which);
            _mm256_storeu_si256((__m256i *)(latent + n_listed), _mm512_cvtepi32_epi16(which));
            n_listed += __builtin_popcount(own);
        }
    }
    if (n_levels <= FEW_LEVELS) return n_listed;
#endif
    int n_active = 0, next[257] = {0};
    for (long s = 0; s < n; s++) {
        active[n_active] = s;
        n_active += level[s] < n_levels;
    }
    for (int a = 0; a < n_active; a++) next[level[active[a]] + 1]++;
    for (long l = 0; l < n_levels; l++) start[l] = next[l], next[l + 1] += next[l];
    for (int a = 0; a < n_active; a++) latent[next[level[active[a]]]++] = active[a];
    return n_active;
}

/* added[level][row] = sum of acts[row][s] * W_dec[s] over the latents s whose first level it is,
 * for rows top to top + rows. */
static long decode_tile(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                        REAL *added, long n_rows, long d_sae, long d_in, long n_levels, long top,
                        long rows) {
    long most = smaller(MOST_ROWS, d_sae), n_tables = (d_sae + most - 1) / most;
    vec *table = aligned_alloc(VECTOR_BYTES, most * VECTORS * VECTOR_BYTES);
    /* The lists: of each table, row and level the latents, counted from the table's first. */
    REAL *act = malloc(rows * d_sae * sizeof *act);
    uint16_t *latent = malloc((rows * d_sae + OVERRUN) * sizeof *latent);
    int *list = malloc((n_tables * rows * n_levels + 1) * sizeof *list); /* where each starts */
    uint16_t *active = malloc((most + 1) * sizeof *active);
    int failed = !table || !act || !latent || !list || !active, *start = list;
    long n = 0;

    for (long left = 0; left < d_sae && !failed; left += most)
        for (long r = 0; r < rows; r++) {
            const uint8_t *level = first_level + (top + r) * d_sae + left;
            const REAL *row = acts + (top + r) * d_sae + left;
            long first = n;
            n += list_levels(level, smaller(most, d_sae - left), n_levels, latent + n, start,
                             active);
            for (long l = 0; l < n_levels; l++) *start++ += first;
            for (long i = first; i < n; i++) act[i] = row[latent[i]];
        }
    if (!failed) *start = n;
    for (long column = 0; column < d_in && !failed; column += STRIP) {
        const int *at = list;
        for (long left = 0; left < d_sae; left += most) {
            for (long s = 0; s < smaller(most, d_sae - left); s++)
                load(table + s * VECTORS, W_dec + (left + s) * d_in, column, d_in);
            for (long r = 0; r < rows; r++)
                for (long l = 0; l < n_levels; l++, at++) {
                    REAL *out = added + (l * n_rows + top + r) * d_in;
                    vec total[VECTORS];
                    fetch(l + 1 < n_levels ? out + n_rows * d_in : added + (top + r + 1) * d_in,
                          column);
                    if (left && at[0] == at[1]) continue;
                    if (left) load(total, out, column, d_in);
                    else EACH_VECTOR total[i] = (vec){0};
                    for (int a = at[0]; a < at[1]; a++) {
                        const vec *w = table + latent[a] * VECTORS;
                        REAL h = act[a];
                        EACH_VECTOR total[i] += h * w[i];
                    }
                    store(out, total, column, d_in);
                }
        }
    }
    free(table), free(act), free(latent), free(list), free(active);
    return -failed;
}

static long decode_share(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                         REAL *added, long n_rows, long d_sae, long d_in, long n_levels,
                         long begin, long end) {
    long rows = smaller(DECODED_ROWS, 1 + MOST_LISTED / d_sae);
    for (; begin < end; begin += rows)
        if (decode_tile(acts, first_level, W_dec, added, n_rows, d_sae, d_in, n_levels, begin,
                        smaller(rows, end - begin)))
            return -1;
    return 0;
}

long decode_rows(const REAL *acts, const uint8_t *first_level, const REAL *W_dec, REAL *added,
                 long n_rows, long d_sae, long d_in, long n_levels, long threads) {
    SHARE_OUT(n_rows, threads, decode_share(acts, first_level, W_dec, added, n_rows, d_sae, d_in,
                                            n_levels, begin, end));
}

/* With g = grad[first level of (row, s)][row] for each latent s that a row uses, for latents begin
 * to end and rows top to bottom: grad_acts[row][s] = W_dec[s] . g, and grad_W_dec[s] = sum of
 * acts[row][s] * g, added to what rows above top made. */
static long gradient_tile(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                          const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows,
                          long d_sae, long d_in, long n_levels, long top, long bottom, long begin,
                          long end) {
    long most = smaller(bottom - top, MOST_ROWS / n_levels), latents = end - begin;
    long n_tables = (bottom - top + most - 1) / most, n_pairs = latents * (bottom - top);
    int shift = 0, n = 0, *start;
    while (1 << shift < n_levels) shift++;
    vec *table = aligned_alloc(VECTOR_BYTES, (most << shift) * VECTORS * VECTOR_BYTES);
    /* The lists: of each table and latent the rows that use it: where in the table, its act and
     * gradient. */
    uint16_t *source = malloc((n_pairs + 1) * sizeof *source);
    REAL *act = malloc((n_pairs + 1) * sizeof *act);
    REAL *dot = malloc((n_pairs + 1) * sizeof *dot);
    int *list = malloc((n_tables * latents + 1) * sizeof *list); /* where each starts */
    quad *part = aligned_alloc(sizeof(quad), most * sizeof *part);
    REAL *tile = malloc(most * LATENT_TILE * sizeof *tile);
    int failed = !table || !source || !act || !dot || !list || !part || !tile;

    start = list;
    for (long first = top; first < bottom && !failed; first += most)
        for (long s = begin; s < end; s++) {
            const uint8_t *level = first_level + first * d_sae + s;
            const REAL *of_row = acts + first * d_sae + s;
            *start++ = n;
            for (long r = 0; r < smaller(most, bottom - first); r++) {
                source[n] = (r << shift) + level[r * d_sae];
                act[n] = of_row[r * d_sae];
                n += level[r * d_sae] < n_levels;
            }
        }
    if (!failed) *start = n;
    for (long column = 0; column < d_in && !failed; column += STRIP) {
        const int *at = list;
        for (long first = top; first < bottom; first += most) {
            for (long r = 0; r < smaller(most, bottom - first); r++)
                for (long l = 0; l < n_levels; l++)
                    load(table + ((r << shift) + l) * VECTORS,
                         grad + (l * n_rows + first + r) * d_in, column, d_in);
            for (long s = begin; s < end; s++, at++) {
                const REAL *w_row = W_dec + s * d_in;
                REAL *out = grad_W_dec + s * d_in;
                vec w[VECTORS], total[VECTORS];
                if (s + 1 < end) fetch(w_row + d_in, column), fetch(out + d_in, column);
                load(w, w_row, column, d_in);
                if (first) load(total, out, column, d_in);
                else EACH_VECTOR total[i] = (vec){0};
                const uint16_t *from = source + at[0];
                const REAL *h = act + at[0];
                REAL *to = dot + at[0];
                int n_uses = at[1] - at[0];
                for (int n = 0; n < n_uses; n++) {
                    const vec *g = table + (long)from[n] * VECTORS;
                    vec even = {0}, odd = {0};
                    EACH_VECTOR {
                        if (i % 2) odd += w[i] * g[i];
                        else even += w[i] * g[i];
                        total[i] += h[n] * g[i];
                    }
                    part[n] = fold(even + odd);
                }
                store(out, total, column, d_in);
                for (int n = 0; n < n_uses; n++) {
                    REAL product = 0;
                    EACH_OF_QUAD product += part[n][i];
                    to[n] = column ? to[n] + product : product;
                }
            }
        }
    }
    for (long first = top, k = 0; first < bottom && !failed; first += most)
        for (long left = begin; left < end; left += LATENT_TILE) {
            long rows = smaller(most, bottom - first), width = smaller(LATENT_TILE, end - left);
            memset(tile, 0, rows * LATENT_TILE * sizeof *tile);
            for (long s = 0; s < width; s++, k++)
                for (int n = list[k]; n < list[k + 1]; n++)
                    tile[(source[n] >> shift) * LATENT_TILE + s] = dot[n];
            for (long r = 0; r < rows; r++)
                memcpy(grad_acts + (first + r) * d_sae + left, tile + r * LATENT_TILE,
                       width * sizeof *tile);
        }
    free(table), free(source), free(act), free(dot), free(list), free(part), free(tile);
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
