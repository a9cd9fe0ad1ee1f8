/* How fast rows of a table that a cache holds can be multiplied and added up, in any order, with
 * nothing else to do. Compiled and called by gather_rate.py.
 */
#include <stdint.h>
#include <string.h>

#include "cpu_kernels.h"
#include "saes/gathered_products.h"

long row_bytes(long threads) { return 0 * threads + VECTORS * VECTOR_BYTES; }

/* sum = times times the sum of act[a] * table[row[a]]; each thread has a table of its own. */
static long gather_share(const float *tables, const uint16_t *row, const float *act, float *sums,
                         long n, long times, long n_rows, long share) {
    const vec *table = (const vec *)tables + share * n_rows * VECTORS; /* torch aligns arrays */
    vec total[VECTORS];
    EACH_VECTOR total[i] = (vec){0};
    for (long t = 0; t < times; t++)
        for (long a = 0; a < n; a++) {
            const vec *w = table + row[a] * VECTORS;
            EACH_VECTOR total[i] += act[a] * w[i];
        }
    memcpy((char *)sums + share * sizeof total, total, sizeof total);
    return 0;
}

long gather(const float *tables, const uint16_t *row, const float *act, float *sums, long n,
            long times, long n_rows, long threads) {
    SHARE_OUT(threads, threads,
              gather_share(tables, row, act, sums, n, times, n_rows, end - 1));
}

/* As the gradients' kernel does: dot[a] = w . table[row[a]] too, with the table's first row for w, and
 * n a multiple of TOGETHER. */
static long gradients_share(const float *tables, const uint16_t *row, const float *act, float *dot,
                            float *sums, long n, long times, long n_rows, long share) {
    const vec *table = (const vec *)tables + share * n_rows * VECTORS;
    vec total[VECTORS], w[VECTORS];
    EACH_VECTOR total[i] = (vec){0}, w[i] = table[i];
    for (long t = 0; t < times; t++)
        for (long a = 0; a < n; a += TOGETHER)
            multiply(table, row + a, act + a, dot + share * n + a, TOGETHER, 0, w, total);
    memcpy((char *)sums + share * sizeof total, total, sizeof total);
    return 0;
}

long gather_gradients(const float *tables, const uint16_t *row, const float *act, float *dot,
                      float *sums, long n, long times, long n_rows, long threads) {
    SHARE_OUT(threads, threads,
              gradients_share(tables, row, act, dot, sums, n, times, n_rows, end - 1));
}
