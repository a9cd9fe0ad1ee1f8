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

#define ROW_TILE 512L
#define LATENT_TILE 256L
#define LATENT_BLOCK 4096L

/* added[level][row] = sum of acts[row][s] * W_dec[s] over the latents s whose first level it is,
 * for rows begin to end. */
static long decode_share(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                         REAL *added, long n_rows, long d_sae, long d_in, long n_levels,
                         long begin, long end) {
    long most = smaller(TABLE_ROWS, d_sae);
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

struct use { uint16_t row, source; };

/* With g = grad[first level of (row, s)][row] for each latent s that a row uses, for latents begin
 * to end: grad_acts[row][s] = W_dec[s] . g, and grad_W_dec[s] = sum of acts[row][s] * g. */
static long gradient_block(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                           const REAL *grad, REAL *grad_acts, REAL *grad_W_dec, long n_rows,
                           long d_sae, long d_in, long n_levels, long begin, long end) {
    long most = smaller(n_rows + 1, TABLE_ROWS / n_levels), latents = end - begin;
    vec *table = aligned_alloc(VECTOR_BYTES, most * n_levels * VECTORS * VECTOR_BYTES);
    uint8_t *level = malloc(LATENT_TILE * most * sizeof *level);
    REAL *act = malloc(latents * most * sizeof *act); /* of each latent, row by row */
    REAL *dot = malloc(latents * most * sizeof *dot);
    struct use *uses = malloc(latents * (most + 1) * sizeof *uses);
    int *n_uses = malloc(latents * sizeof *n_uses);
    int failed = !table || !level || !act || !dot || !uses || !n_uses;

    if (n_rows == 0) memset(grad_W_dec + begin * d_in, 0, latents * d_in * sizeof(REAL));
    for (long top = 0; top < n_rows && !failed; top += most) {
        long rows = smaller(most, n_rows - top);
        for (long left = 0; left < latents; left += LATENT_TILE) {
            long tile = smaller(LATENT_TILE, latents - left);
            for (long r = 0; r < rows; r++)
                for (long s = 0; s < tile; s++) {
                    long at = (top + r) * d_sae + begin + left + s;
                    act[(left + s) * most + r] = acts[at];
                    level[s * most + r] = first_level[at];
                }
            for (long s = 0; s < tile; s++) {
                struct use *list = uses + (left + s) * (most + 1);
                int n = 0;
                for (long r = 0; r < rows; r++) {
                    long l = level[s * most + r];
                    list[n] = (struct use){r, r * n_levels + l};
                    n += l < n_levels;
                }
                n_uses[left + s] = n;
            }
        }
        memset(dot, 0, latents * most * sizeof *dot);
        for (long column = 0; column < d_in; column += STRIP) {
            for (long r = 0; r < rows; r++)
                for (long l = 0; l < n_levels; l++)
                    load(table + (r * n_levels + l) * VECTORS,
                         grad + (l * n_rows + top + r) * d_in, column, d_in);
            for (long s = 0; s < latents; s++) {
                const REAL *w_row = W_dec + (begin + s) * d_in, *h = act + s * most;
                REAL *out = grad_W_dec + (begin + s) * d_in, *row_dot = dot + s * most;
                vec w[VECTORS], total[VECTORS];
                if (s + 1 < latents) fetch(w_row + d_in, column), fetch(out + d_in, column);
                load(w, w_row, column, d_in);
                if (top) load(total, out, column, d_in);
                else EACH_VECTOR total[i] = (vec){0};
                const struct use *use = uses + s * (most + 1), *last = use + n_uses[s];
                for (; use < last; use++) {
                    const vec *g = table + (long)use->source * VECTORS;
                    vec even = {0}, odd = {0};
                    EACH_VECTOR {
                        if (i % 2) odd += w[i] * g[i];
                        else even += w[i] * g[i];
                        total[i] += h[use->row] * g[i];
                    }
                    row_dot[use->row] += sum(even + odd);
                }
                store(out, total, column, d_in);
            }
        }
        for (long left = 0; left < latents; left += LATENT_TILE)
            for (long r = 0; r < rows; r++)
                for (long s = left; s < smaller(left + LATENT_TILE, latents); s++)
                    grad_acts[(top + r) * d_sae + begin + s] = dot[s * most + r];
    }
    free(table), free(level), free(act), free(dot), free(uses), free(n_uses);
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
