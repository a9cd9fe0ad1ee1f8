/* Decoder rows of norm one, for CPUs. Compiled and called by unit_norm_decoder.py. Arrays are
 * contiguous.
 */
#include <math.h>

#include "cpu_kernels.h"

/* REAL, float or double, is given on the compiler's command line. */

static REAL dot(const REAL *a, const REAL *b, long n) {
    REAL total = 0;
    _Pragma("omp simd reduction(+ : total)")
    for (long i = 0; i < n; i++) total += a[i] * b[i];
    return total;
}

/* Divide each row by its norm, or by least[0] if that is larger. */
static long normalize_share(REAL *W, REAL least, long d_in, long begin, long end) {
    for (long s = begin; s < end; s++) {
        REAL *w = W + s * d_in, norm = sqrt(dot(w, w, d_in)), scale = 1 / (norm < least ? least : norm);
        _Pragma("omp simd")
        for (long i = 0; i < d_in; i++) w[i] *= scale;
    }
    return 0;
}

long normalize_rows(REAL *W, const REAL *least, long d_sae, long d_in, long threads) {
    SHARE_OUT(d_sae, threads, normalize_share(W, least[0], d_in, begin, end));
}

/* Take away from each row of grad its part parallel to the row of W, whose squared norm counts as
 * least[0] at least. */
static long project_share(REAL *grad, const REAL *W, REAL least, long d_in, long begin, long end) {
    for (long s = begin; s < end; s++) {
        const REAL *w = W + s * d_in;
        REAL *g = grad + s * d_in, square = dot(w, w, d_in);
        REAL parallel = dot(g, w, d_in) / (square < least ? least : square);
        _Pragma("omp simd")
        for (long i = 0; i < d_in; i++) g[i] -= parallel * w[i];
    }
    return 0;
}

long project_rows(REAL *grad, const REAL *W, const REAL *least, long d_sae, long d_in,
                  long threads) {
    SHARE_OUT(d_sae, threads, project_share(grad, W, least[0], d_in, begin, end));
}
