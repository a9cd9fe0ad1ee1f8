/* What a ReLU SAE's training step does beside its matrix products, for CPUs, in few passes over
 * memory. Compiled and called by dense_step.py. Arrays are contiguous.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu_kernels.h"

/* REAL, float or double, is given on the compiler's command line. */

/* hidden += bias and acts = ReLU(hidden), for columns begin to end of n_latents; hidden's rows lie
 * stride apart. Of each latent the number of rows in which it fires and the sum of its acts. NaN
 * stays NaN, and counts as firing. */
static long rectify_share(REAL *hidden, const REAL *bias, REAL *acts, REAL *n_fired, REAL *sums,
                          long n_rows, long n_latents, long stride, long begin, long end) {
    for (long s = begin; s < end; s++) n_fired[s] = sums[s] = 0;
    for (long r = 0; r < n_rows; r++) {
        REAL *h = hidden + r * stride, *a = acts + r * n_latents;
        _Pragma("omp simd")
        for (long s = begin; s < end; s++) {
            REAL value = h[s] + bias[s], act = value <= 0 ? 0 : value;
            h[s] = value;
            a[s] = act;
            n_fired[s] += act != 0;
            sums[s] += act;
        }
    }
    return 0;
}

long rectify(REAL *hidden, const REAL *bias, REAL *acts, REAL *n_fired, REAL *sums, long n_rows,
             long n_latents, long stride, long threads) {
    SHARE_OUT(n_latents, threads, rectify_share(hidden, bias, acts, n_fired, sums, n_rows,
                                                n_latents, stride, begin, end));
}

/* The first n_latents columns of grad, whose rows lie width apart, become the gradient of latents
 * before ReLU, from that after it; of a latent that fires it grows by penalty[0]. Its sum over rows
 * is the bias's. */
static long rectify_gradient_share(const REAL *acts, REAL *grad, REAL added, REAL *bias_grad,
                                   long n_rows, long n_latents, long width, long begin, long end) {
    for (long s = begin; s < end; s++) bias_grad[s] = 0;
    for (long r = 0; r < n_rows; r++) {
        const REAL *a = acts + r * n_latents;
        REAL *g = grad + r * width;
        _Pragma("omp simd")
        for (long s = begin; s < end; s++) {
            REAL value = a[s] == 0 ? 0 : g[s] + added;
            g[s] = value;
            bias_grad[s] += value;
        }
    }
    return 0;
}

long rectify_gradient(const REAL *acts, REAL *grad, const REAL *penalty, REAL *bias_grad,
                      long n_rows, long n_latents, long width, long threads) {
    SHARE_OUT(n_latents, threads, rectify_gradient_share(acts, grad, penalty[0], bias_grad, n_rows,
                                                         n_latents, width, begin, end));
}

/* residual = rows - decoded. Of each row: its weight, 1, or 1 / its norm if by_norm; and the weighted
 * sum of its squared residuals. A row of zeros has no norm to divide by. */
static long residual_share(const REAL *rows, const REAL *decoded, REAL *residual, REAL *weight,
                           REAL *error, long d_in, long by_norm, long begin, long end) {
    for (long r = begin; r < end; r++) {
        const REAL *z = rows + r * d_in, *out = decoded + r * d_in;
        REAL *left = residual + r * d_in, square = 0, squared_error = 0;
        _Pragma("omp simd reduction(+ : square, squared_error)")
        for (long i = 0; i < d_in; i++) {
            REAL value = z[i] - out[i];
            left[i] = value;
            squared_error += value * value;
            square += z[i] * z[i];
        }
        weight[r] = by_norm && square != 0 ? 1 / (REAL)sqrt(square) : 1;
        error[r] = squared_error * weight[r];
    }
    return 0;
}

long residual_rows(const REAL *rows, const REAL *decoded, REAL *residual, REAL *weight, REAL *error,
                   long n_rows, long d_in, long by_norm, long threads) {
    SHARE_OUT(n_rows, threads, residual_share(rows, decoded, residual, weight, error, d_in, by_norm,
                                              begin, end));
}

/* The ghost term (ghost_gradients.py), with r = residual, weight as above and g what the dead latents
 * decode: of each row its sum over features; decoded becomes its gradient with respect to g. */
static long ghost_share(const REAL *residual, const REAL *weight, REAL *decoded, REAL *error,
                        REAL epsilon, REAL tiny, long d_in, long begin, long end) {
    for (long row = begin; row < end; row++) {
        const REAL *r = residual + row * d_in;
        REAL *g = decoded + row * d_in, r_norm = 0, g_norm = 0, sum = 0;
        _Pragma("omp simd reduction(+ : r_norm, g_norm)")
        for (long i = 0; i < d_in; i++) r_norm += r[i] * r[i], g_norm += g[i] * g[i];
        r_norm = sqrt(r_norm), g_norm = sqrt(g_norm);
        REAL scale = r_norm / (2 * g_norm + epsilon), divisor = r_norm < tiny ? tiny : r_norm;
        _Pragma("omp simd reduction(+ : sum)")
        for (long i = 0; i < d_in; i++) {
            REAL off = scale * g[i] - r[i], e = off * off / divisor;
            REAL factor = r[i] * r[i] * weight[row] / (e + epsilon);
            sum += e * factor;
            g[i] = 2 * off / divisor * factor * scale;
        }
        error[row] = sum;
    }
    return 0;
}

long ghost_rows(const REAL *residual, const REAL *weight, REAL *decoded, REAL *error,
                const REAL *constants, long n_rows, long d_in, long threads) {
    SHARE_OUT(n_rows, threads, ghost_share(residual, weight, decoded, error, constants[0],
                                           constants[1], d_in, begin, end));
}

/* part[r][i] = whole[r][column[i]], where whole's rows lie stride apart */
static long gather_share(const REAL *whole, const int64_t *column, REAL *part, long stride,
                         long n_columns, long begin, long end) {
    for (long r = begin; r < end; r++)
        for (long i = 0; i < n_columns; i++)
            part[r * n_columns + i] = whole[r * stride + column[i]];
    return 0;
}

long gather_columns(const REAL *whole, const int64_t *column, REAL *part, long n_rows, long stride,
                    long n_columns, long threads) {
    SHARE_OUT(n_rows, threads, gather_share(whole, column, part, stride, n_columns, begin, end));
}

/* whole[r][s] = part[r][one[s]] + part[r][other[s]], where a negative number stands for none, plus
 * what is there if adds; whole's rows lie stride apart */
static long spread_share(const REAL *part, const int64_t *one, const int64_t *other, REAL *whole,
                         long n_columns, long width, long stride, long adds, long begin,
                         long end) {
    for (long r = begin; r < end; r++) {
        const REAL *from = part + r * n_columns;
        REAL *to = whole + r * stride;
        for (long s = 0; s < width; s++)
            to[s] = (adds ? to[s] : 0) + (one[s] < 0 ? 0 : from[one[s]]) +
                    (other[s] < 0 ? 0 : from[other[s]]);
    }
    return 0;
}

long spread_columns(const REAL *part, const int64_t *one, const int64_t *other, REAL *whole,
                    long n_rows, long n_columns, long width, long stride, long adds,
                    long threads) {
    SHARE_OUT(n_rows, threads, spread_share(part, one, other, whole, n_columns, width, stride, adds,
                                            begin, end));
}

/* whole[s] = part[one[s]] + part[other[s]], likewise */
static long spread_rows_share(const REAL *part, const int64_t *one, const int64_t *other,
                              REAL *whole, long d_in, long adds, long begin, long end) {
    for (long s = begin; s < end; s++) {
        REAL *to = whole + s * d_in;
        long is_empty = !adds;
        const int64_t places[] = {one[s], other[s]};
        for (int p = 0; p < 2; p++) {
            if (places[p] < 0) continue;
            const REAL *from = part + places[p] * d_in;
            if (is_empty) memcpy(to, from, d_in * sizeof *to);
            else for (long i = 0; i < d_in; i++) to[i] += from[i];
            is_empty = 0;
        }
        if (is_empty) memset(to, 0, d_in * sizeof *to);
    }
    return 0;
}

long spread_rows(const REAL *part, const int64_t *one, const int64_t *other, REAL *whole,
                 long n_rows, long d_in, long adds, long threads) {
    SHARE_OUT(n_rows, threads,
              spread_rows_share(part, one, other, whole, d_in, adds, begin, end));
}
