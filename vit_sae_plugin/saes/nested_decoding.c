/* The sparse products of nested decoding, for CPUs. Compiled and called by nested_decoding.py.
 *
 * Each product gathers rows for very many short lists of latents. Both functions keep what they
 * gather from in the second-level cache, as a packed table of one strip of columns, and what they
 * add up in registers for the length of a list. Arrays are contiguous; first_level[row][latent]
 * is at least n_levels where no level keeps the latent. They return -1 if memory runs out, else 0.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_kernels.h"
#include "strips.h"

#define MOST_ROWS (TABLE_ROWS * 3 / 2) /* of a table; not all are looked up equally often */
#define ROW_TILE 512L
#define LATENT_TILE 64L
#define LATENT_BLOCK 4096L

/* added[level][row] = sum of acts[row][s] * W_dec[s] over the latents s whose first level it is,
 * for rows begin to end. */
static long decode_share(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                         REAL *added, long n_rows, long d_sae, long d_in, long n_levels,
                         long begin, long end) {
    long most = smaller(MOST_ROWS, d_sae);
    vec *table = aligned_alloc(VECTOR_BYTES, most * VECTORS * VECTOR_BYTES);
    REAL *act = malloc(ROW_TILE * most * sizeof *act);
    uint16_t *latent = malloc(ROW_TILE * most * sizeof *latent);
    uint16_t *active = malloc((most + 1) * sizeof *active);
    int *list = malloc(ROW_TILE * (n_levels + 1) * sizeof *list); /* where each level's starts */
    int *next = malloc(n_levels * sizeof *next);
    int failed = !table || !act || !latent || !active || !list || !next;

    for (long top = begin; top < end && !failed; top += ROW_TILE)
        for (long left = 0; left < d_sae; left += most) {
            long rows = smaller(ROW_TILE, end - top), latents = smaller(most, d_sae - left);
            for (long r = 0; r < rows; r++) {
                const uint8_t *level = first_level + (top + r) * d_sae + left;
                const REAL *row = acts + (top + r) * d_sae + left;
                int *at = list + r * (n_levels + 1), n_active = 0;
                for (long s = 0; s < latents; s++) {
                    active[n_active] = s;
                    n_active += level[s] < n_levels;
                }
                memset(at, 0, (n_levels + 1) * sizeof *at);
                for (int a = 0; a < n_active; a++) at[level[active[a]] + 1]++;
                for (long l = 0; l < n_levels; l++) next[l] = at[l], at[l + 1] += at[l];
                for (int a = 0; a < n_active; a++) {
                    long i = r * most + next[level[active[a]]]++;
                    latent[i] = active[a];
                    act[i] = row[active[a]];
                }
            }
            for (long column = 0; column < d_in; column += STRIP) {
                for (long s = 0; s < latents; s++)
                    load(table + s * VECTORS, W_dec + (left + s) * d_in, column, d_in);
                for (long r = 0; r < rows; r++)
                    for (long l = 0; l < n_levels; l++) {
                        const int *at = list + r * (n_levels + 1) + l;
                        REAL *out = added + (l * n_rows + top + r) * d_in;
                        vec total[VECTORS];
                        fetch(l + 1 < n_levels ? out + n_rows * d_in
                                               : added + (top + r + 1) * d_in, column);
                        if (left && at[0] == at[1]) continue;
                        if (left) load(total, out, column, d_in);
                        else EACH_VECTOR total[i] = (vec){0};
                        for (long a = r * most + at[0]; a < r * most + at[1]; a++) {
                            const vec *w = table + latent[a] * VECTORS;
                            REAL h = act[a];
                            EACH_VECTOR total[i] += h * w[i];
                        }
                        store(out, total, column, d_in);
                    }
            }
        }
    free(table), free(act), free(latent), free(active), free(list), free(next);
    return -failed;
}

long decode_rows(const REAL *acts, const uint8_t *first_level, const REAL *W_dec, REAL *added,
                 long n_rows, long d_sae, long d_in, long n_levels, long threads) {
    SHARE_OUT(n_rows, threads, decode_share(acts, first_level, W_dec, added, n_rows, d_sae, d_in,
                                            n_levels, begin, end));
}

/* With g = grad[first level of (row, s)][row] for each latent s that a row uses, for latents begin
 * to end: grad_acts[row][s] = W_dec[s] . g, and grad_W_dec[s] = sum of acts[row][s] * g. */
static long gradient_block(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                           const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows,
                           long d_sae, long d_in, long n_levels, long begin, long end) {
    long most = smaller(n_rows + 1, MOST_ROWS / n_levels), latents = end - begin;
    vec *table = aligned_alloc(VECTOR_BYTES, most * n_levels * VECTORS * VECTOR_BYTES);
    /* Of each latent, the rows that use it: which, where in the table, its act and gradient. */
    uint16_t *user = malloc(latents * (most + 1) * sizeof *user);
    uint16_t *source = malloc(latents * (most + 1) * sizeof *source);
    REAL *act = malloc(latents * (most + 1) * sizeof *act);
    REAL *dot = malloc(latents * (most + 1) * sizeof *dot);
    int *n_uses = malloc(latents * sizeof *n_uses);
    quad *part = aligned_alloc(sizeof(quad), most * sizeof *part);
    REAL *tile = malloc(most * LATENT_TILE * sizeof *tile);
    int failed = !table || !user || !source || !act || !dot || !n_uses || !part || !tile;

    if (n_rows == 0) memset(grad_W_dec + begin * d_in, 0, latents * d_in * sizeof(REAL));
    for (long top = 0; top < n_rows && !failed; top += most) {
        long rows = smaller(most, n_rows - top);
        memset(n_uses, 0, latents * sizeof *n_uses);
        for (long left = 0; left < latents; left += LATENT_TILE)
            for (long r = 0; r < rows; r++) {
                const uint8_t *level = first_level + (top + r) * d_sae + begin;
                const REAL *row = acts + (top + r) * d_sae + begin;
                for (long s = left; s < smaller(left + LATENT_TILE, latents); s++) {
                    long at = s * (most + 1) + n_uses[s];
                    user[at] = r;
                    source[at] = r * n_levels + level[s];
                    act[at] = row[s];
                    n_uses[s] += level[s] < n_levels;
                }
            }
        for (long column = 0; column < d_in; column += STRIP) {
            for (long r = 0; r < rows; r++)
                for (long l = 0; l < n_levels; l++)
                    load(table + (r * n_levels + l) * VECTORS,
                         grad + (l * n_rows + top + r) * d_in, column, d_in);
            for (long s = 0; s < latents; s++) {
                const REAL *w_row = W_dec + (begin + s) * d_in;
                REAL *out = grad_W_dec + (begin + s) * d_in;
                vec w[VECTORS], total[VECTORS];
                if (s + 1 < latents) fetch(w_row + d_in, column), fetch(out + d_in, column);
                load(w, w_row, column, d_in);
                if (top) load(total, out, column, d_in);
                else EACH_VECTOR total[i] = (vec){0};
                const uint16_t *from = source + s * (most + 1);
                const REAL *h = act + s * (most + 1);
                for (int n = 0; n < n_uses[s]; n++) {
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
                REAL *to = dot + s * (most + 1);
                for (int n = 0; n < n_uses[s]; n++) {
                    REAL product = 0;
                    EACH_OF_QUAD product += part[n][i];
                    to[n] = column ? to[n] + product : product;
                }
            }
        }
        for (long left = 0; left < latents; left += LATENT_TILE) {
            long width = smaller(LATENT_TILE, latents - left);
            memset(tile, 0, rows * LATENT_TILE * sizeof *tile);
            for (long s = 0; s < width; s++)
                for (long n = (left + s) * (most + 1), i = 0; i < n_uses[left + s]; i++)
                    tile[user[n + i] * LATENT_TILE + s] = dot[n + i];
            for (long r = 0; r < rows; r++)
                memcpy(grad_acts + (top + r) * d_sae + begin + left, tile + r * LATENT_TILE,
                       width * sizeof *tile);
        }
    }
    free(table), free(user), free(source), free(act), free(dot), free(n_uses), free(part);
    free(tile);
    return -failed;
}

/* The same for as many latents as it may be: the working space is that of a block. */
static long gradient_share(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                           const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows,
                           long d_sae, long d_in, long n_levels, long begin, long end) {
    for (; begin < end; begin += LATENT_BLOCK)
        if (gradient_block(acts, first_level, W_dec, grad, grad_acts, grad_W_dec, n_rows, d_sae,
                           d_in, n_levels, begin, smaller(begin + LATENT_BLOCK, end)))
            return -1;
    return 0;
}

long decode_gradients(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                      const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows, long d_sae,
                      long d_in, long n_levels, long threads) {
    SHARE_OUT(d_sae, threads, gradient_share(acts, first_level, W_dec, grad, grad_acts, grad_W_dec,
                                             n_rows, d_sae, d_in, n_levels, begin, end));
}
