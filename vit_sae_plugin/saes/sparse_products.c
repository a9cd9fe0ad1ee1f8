/* Decoding from few latents, and all gradients of that, for CPUs. Compiled and called by
 * sparse_products.py.
 *
 * A row's latents are act[a] at column latent[a], for a from row_start[row] to row_start[row + 1].
 * The gradients go latent by latent, so that each is written once and by one thread. What they
 * gather stands in a table in the second-level cache: a strip of columns of a tile of rows.
 * Functions return -1 if memory runs out, else 0.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_kernels.h"
#include "strips.h"

#define CHUNK 2048L /* latents whose encoder columns are held until they are transposed */
#define SQUARE 16L

/* How many latents of each row are active: not zero. NaN is. */
static long count_share(const REAL *acts, int64_t *n_active, long d_sae, long begin, long end) {
    for (long r = begin; r < end; r++) {
        int64_t n = 0;
        _Pragma("omp simd reduction(+ : n)")
        for (long s = 0; s < d_sae; s++) n += acts[r * d_sae + s] != 0;
        n_active[r] = n;
    }
    return 0;
}

long count_active(const REAL *acts, int64_t *n_active, long n_rows, long d_sae, long threads) {
    SHARE_OUT(n_rows, threads, count_share(acts, n_active, d_sae, begin, end));
}

/* Which they are, and how active, of a row that has n. */
static void list_row(const REAL *acts, int32_t *latent, REAL *act, long n, long d_sae) {
    long a = 0;
    for (long s = 0; s < d_sae && a < n; s++) {
#ifdef COMPRESSES
        if (sizeof(REAL) == 4 && s % 16 == 0 && s + 16 <= d_sae) {
            __m512 v = _mm512_loadu_ps((const float *)acts + s);
            __mmask16 chosen = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
            __m512i which = _mm512_add_epi32(ascending(), _mm512_set1_epi32(s));
            if (chosen) {
                _mm512_mask_compressstoreu_ps(act + a, chosen, v);
                _mm512_mask_compressstoreu_epi32(latent + a, chosen, which);
                a += __builtin_popcount(chosen);
            }
            s += 15;
            continue;
        }
#endif
        if (acts[s] != 0) latent[a] = s, act[a++] = acts[s];
    }
}

static long list_share(const REAL *acts, const int64_t *row_start, int32_t *latent, REAL *act,
                       long d_sae, long begin, long end) {
    for (long r = begin; r < end; r++) {
        long first = row_start[r];
        list_row(acts + r * d_sae, latent + first, act + first, row_start[r + 1] - first, d_sae);
    }
    return 0;
}

/* The latents of all rows, of which row_start tells how many each has. */
long list_active(const REAL *acts, const int64_t *row_start, int32_t *latent, REAL *act,
                 long n_rows, long d_sae, long threads) {
    SHARE_OUT(n_rows, threads, list_share(acts, row_start, latent, act, d_sae, begin, end));
}

static long decode_share(const int64_t *row_start, const int32_t *latent, const REAL *act,
                         const REAL *W_dec, REAL *out, long d_in, long begin, long end) {
    for (long r = begin; r < end; r++)
        for (long column = 0; column < d_in; column += STRIP) {
            vec total[VECTORS] = {0}, w[VECTORS];
            for (long a = row_start[r]; a < row_start[r + 1]; a++) {
                REAL h = act[a];
                if (a + 1 < row_start[r + 1]) fetch(W_dec + latent[a + 1] * d_in, column);
                load(w, W_dec + latent[a] * d_in, column, d_in);
                EACH_VECTOR total[i] += h * w[i];
            }
            store(out + r * d_in, total, column, d_in);
        }
    return 0;
}

/* out[row] = sum of act * W_dec[latent] over the row's latents. */
long decode_rows(const int64_t *row_start, const int32_t *latent, const REAL *act,
                 const REAL *W_dec, REAL *out, long d_in, long n_rows, long threads) {
    SHARE_OUT(n_rows, threads,
              decode_share(row_start, latent, act, W_dec, out, d_in, begin, end));
}

/* The same latents one after another, with the rows in which each is used, in order. */
long sort_by_latent(const int64_t *row_start, const int32_t *latent, const REAL *act,
                    int64_t *latent_start, int32_t *use_row, REAL *use_act, long n_rows,
                    long d_sae, long threads) {
    int64_t *next = malloc((d_sae + 1) * sizeof *next);
    (void)threads;
    if (!next) return -1;
    memset(latent_start, 0, (d_sae + 1) * sizeof *latent_start);
    for (long a = 0; a < row_start[n_rows]; a++) latent_start[latent[a] + 1]++;
    for (long s = 0; s < d_sae; s++) next[s] = latent_start[s], latent_start[s + 1] += next[s];
    for (long r = 0; r < n_rows; r++)
        for (long a = row_start[r]; a < row_start[r + 1]; a++) {
            long use = next[latent[a]]++;
            use_row[use] = r, use_act[use] = act[a];
        }
    free(next);
    return 0;
}

/* Of latents first to last, no more than a chunk. first_use[tile][s] is where the uses of latent
 * first + s begin in that tile of rows, and in the tile after the last where they end. */
struct uses {
    const int32_t *row;
    const REAL *act;
    const int64_t *first_use;
    long first, last, n_tiles;
};

static void load_table(vec *table, const REAL *rows, long top, long n_rows, long column,
                       long d_in) {
    for (long r = top; r < smaller(top + TABLE_ROWS, n_rows); r++)
        load(table + (r - top) * VECTORS, rows + r * d_in, column, d_in);
}

/* dot[use] = W_dec[latent] . grad[row], grad_W_dec[latent] = sum of act * grad[row] */
static void decoder_gradient(struct uses uses, const REAL *W_dec, const REAL *grad, vec *table,
                             REAL *dot, REAL *grad_W_dec, long n_rows, long d_in) {
    long n = uses.last - uses.first;
    for (long tile = 0; tile < uses.n_tiles; tile++)
        for (long column = 0; column < d_in; column += STRIP) {
            const int64_t *from = uses.first_use + tile * n, *to = from + n;
            load_table(table, grad, tile * TABLE_ROWS, n_rows, column, d_in);
            for (long s = 0; s < n; s++) {
                const REAL *w_row = W_dec + (uses.first + s) * d_in;
                REAL *out = grad_W_dec + (uses.first + s) * d_in;
                vec w[VECTORS], total[VECTORS];
                if (s + 1 < n) fetch(w_row + d_in, column), fetch(out + d_in, column);
                if (tile && from[s] == to[s]) continue;
                load(w, w_row, column, d_in);
                if (tile) load(total, out, column, d_in);
                else EACH_VECTOR total[i] = (vec){0};
                for (long use = from[s]; use < to[s]; use++) {
                    const vec *g = table + (uses.row[use] - tile * TABLE_ROWS) * VECTORS;
                    REAL h = uses.act[use];
                    vec even = {0}, odd = {0};
                    EACH_VECTOR {
                        if (i % 2) odd += w[i] * g[i];
                        else even += w[i] * g[i];
                        total[i] += h * g[i];
                    }
                    dot[use] = (column ? dot[use] : 0) + sum(even + odd);
                }
                store(out, total, column, d_in);
            }
        }
}

/* dot[use] += penalty, which every active latent pays; grad_b_enc[latent] = sum of dot[use] */
static void bias_gradient(struct uses uses, REAL penalty, REAL *dot, REAL *grad_b_enc) {
    long n = uses.last - uses.first;
    for (long s = 0; s < n; s++) {
        REAL total = 0;
        for (long use = uses.first_use[s]; use < uses.first_use[uses.n_tiles * n + s]; use++)
            total += dot[use] += penalty;
        grad_b_enc[uses.first + s] = total;
    }
}

/* grad_W_enc[:, latent] = sum of dot[use] * x[row]; grad_W_enc's rows lie stride apart */
static void encoder_gradient(struct uses uses, const REAL *x, vec *table, vec *columns,
                             const REAL *dot, REAL *grad_W_enc, long n_rows, long stride,
                             long d_in) {
    long n = uses.last - uses.first;
    for (long column = 0; column < d_in; column += STRIP) {
        for (long tile = 0; tile < uses.n_tiles; tile++) {
            const int64_t *from = uses.first_use + tile * n, *to = from + n;
            load_table(table, x, tile * TABLE_ROWS, n_rows, column, d_in);
            for (long s = 0; s < n; s++) {
                vec *out = columns + s * VECTORS, total[VECTORS];
                EACH_VECTOR total[i] = tile ? out[i] : (vec){0};
                for (long use = from[s]; use < to[s]; use++) {
                    const vec *row = table + (uses.row[use] - tile * TABLE_ROWS) * VECTORS;
                    REAL h = dot[use];
                    EACH_VECTOR total[i] += h * row[i];
                }
                EACH_VECTOR out[i] = total[i];
            }
        }
        const REAL *from = (const REAL *)columns;
        for (long left = 0; left < n; left += SQUARE)
            for (long c = 0; c < smaller(STRIP, d_in - column); c++) {
                REAL *out = grad_W_enc + (column + c) * stride + uses.first;
                for (long s = left; s < smaller(left + SQUARE, n); s++)
                    out[s] = from[s * STRIP + c];
            }
    }
}

/* The first latent of a share that begins at this amount of work: a use each, and a latent each. */
static long latent_at(const int64_t *latent_start, long d_sae, long work) {
    long low = 0, high = d_sae;
    while (low < high) {
        long middle = (low + high) / 2;
        if (latent_start[middle] + middle < work) low = middle + 1;
        else high = middle;
    }
    return low < d_sae ? low / SQUARE * SQUARE : d_sae;
}

static long gradients_share(const int64_t *latent_start, const int32_t *use_row,
                            const REAL *use_act, const REAL *W_dec, const REAL *grad,
                            const REAL *x, REAL penalty, REAL *dot, REAL *grad_W_dec,
                            REAL *grad_W_enc, REAL *grad_b_enc, long n_rows, long d_sae, long d_in,
                            long stride, long begin, long end) {
    long first = latent_at(latent_start, d_sae, begin), last = latent_at(latent_start, d_sae, end);
    long n_tiles = n_rows ? (n_rows - 1) / TABLE_ROWS + 1 : 1;
    vec *table = aligned_alloc(VECTOR_BYTES, smaller(TABLE_ROWS, n_rows + 1) * sizeof(vec[VECTORS]));
    vec *columns = aligned_alloc(VECTOR_BYTES, CHUNK * sizeof(vec[VECTORS]));
    int64_t *first_use = malloc((n_tiles + 1) * CHUNK * sizeof *first_use);
    int failed = !table || !columns || !first_use;
    for (; first < last && !failed; first += CHUNK) {
        long n = smaller(CHUNK, last - first);
        for (long s = 0; s < n; s++) {
            long use = latent_start[first + s], past = latent_start[first + s + 1];
            for (long tile = 0; tile <= n_tiles; tile++) {
                while (use < past && use_row[use] < tile * TABLE_ROWS) use++;
                first_use[tile * n + s] = use;
            }
        }
        struct uses uses = {use_row, use_act, first_use, first, first + n, n_tiles};
        decoder_gradient(uses, W_dec, grad, table, dot, grad_W_dec, n_rows, d_in);
        bias_gradient(uses, penalty, dot, grad_b_enc);
        encoder_gradient(uses, x, table, columns, dot, grad_W_enc, n_rows, stride, d_in);
    }
    free(table), free(columns), free(first_use);
    return -failed;
}

/* With grad the gradient of what decode_rows returns and latents sorted by sort_by_latent, the
 * gradient of each use's latent (dot), to which penalty[0] is added, and those of the decoder and of
 * the encoder whose input is x. grad_W_enc's rows lie stride apart. */
long gradients(const int64_t *latent_start, const int32_t *use_row, const REAL *use_act,
               const REAL *W_dec, const REAL *grad, const REAL *x, const REAL *penalty, REAL *dot,
               REAL *grad_W_dec, REAL *grad_W_enc, REAL *grad_b_enc, long n_rows, long d_sae,
               long d_in, long stride, long threads) {
    long work = latent_start[d_sae] + d_sae;
    SHARE_OUT(work, threads,
              gradients_share(latent_start, use_row, use_act, W_dec, grad, x, penalty[0], dot,
                              grad_W_dec, grad_W_enc, grad_b_enc, n_rows, d_sae, d_in, stride,
                              begin, end));
}
