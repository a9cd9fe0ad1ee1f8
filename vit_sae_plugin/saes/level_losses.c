/* The squared errors of nested reconstructions, and their gradient, in one pass over the levels
 * each. Compiled and called by level_losses.py. Arrays are contiguous; REAL, float or double, is
 * given on the compiler's command line.
 */
#include <string.h>

#include "cpu_kernels.h"

/* Of what each level adds ([level][row][column]) make its difference to the target, in place.
 * last[row] = sum over all levels, error[level][row] = sum of the squared differences. */
static long difference_share(REAL *levels, const REAL *target, REAL *last, REAL *error,
                             long n_levels, long n_rows, long d_in, long begin, long end) {
    for (long r = begin; r < end; r++) {
        const REAL *t = target + r * d_in;
        REAL *decoded = last + r * d_in;
        memset(decoded, 0, d_in * sizeof *decoded);
        for (long l = 0; l < n_levels; l++) {
            REAL *level = levels + (l * n_rows + r) * d_in, total = 0;
            _Pragma("omp simd reduction(+:total)")
            for (long i = 0; i < d_in; i++) {
                REAL value = decoded[i] + level[i], difference = value - t[i];
                decoded[i] = value;
                level[i] = difference;
                total += difference * difference;
            }
            error[l * n_rows + r] = total;
        }
    }
    return 0;
}

long level_differences(REAL *levels, const REAL *target, REAL *last, REAL *error, long n_levels,
                       long n_rows, long d_in, long threads) {
    SHARE_OUT(n_rows, threads, difference_share(levels, target, last, error, n_levels, n_rows,
                                                d_in, begin, end));
}

/* With the error e = factor[level] * scale[row] * difference: grad[level][row] = the sum of e over
 * this level and all later ones, plus grad_last[row]; grad_target[row] = minus the sum of e over
 * all. scale and grad_last may be NULL. */
static long gradient_share(const REAL *difference, const REAL *factor, const REAL *scale,
                           const REAL *grad_last, REAL *grad, REAL *grad_target, long n_levels,
                           long n_rows, long d_in, long begin, long end) {
    for (long r = begin; r < end; r++) {
        REAL *target = grad_target + r * d_in;
        const REAL *added = grad_last ? grad_last + r * d_in : 0;
        memset(target, 0, d_in * sizeof *target);
        for (long l = n_levels - 1; l >= 0; l--) {
            const REAL *from = difference + (l * n_rows + r) * d_in;
            REAL *to = grad + (l * n_rows + r) * d_in, times = factor[l] * (scale ? scale[r] : 1);
            _Pragma("omp simd")
            for (long i = 0; i < d_in; i++) {
                REAL value = target[i] - times * from[i];
                target[i] = value;
                to[i] = added ? added[i] - value : -value;
            }
        }
    }
    return 0;
}

long level_gradients(const REAL *difference, const REAL *factor, const REAL *scale,
                     const REAL *grad_last, REAL *grad, REAL *grad_target, long n_levels,
                     long n_rows, long d_in, long threads) {
    SHARE_OUT(n_rows, threads, gradient_share(difference, factor, scale, grad_last, grad,
                                              grad_target, n_levels, n_rows, d_in, begin, end));
}
