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

/* Divide each row by its norm and tell what it was. A norm of least[0] or less counts as one. */
static long normalize_share(REAL *W, REAL *norms, REAL least, long d_in, long begin, long end) {
    for (long s = begin; s < end; s++) {
        REAL *w = W + s * d_in, norm = sqrt(dot(w, w, d_in)), scale = norm > least ? 1 / norm : 1;
        _Pragma("omp simd")
        for (long i = 0; i < d_in; i++) w[i] *= scale;
        norms[s] = norm > least ? norm : 1;
    }
    return 0;
}

long normalize_rows(REAL *W, REAL *norms, const REAL *least, long d_sae, long d_in, long threads) {
    SHARE_OUT(d_sae, threads, normalize_share(W, norms, least[0], d_in, begin, end));
}

/* Each row of grad without its part parallel to the row of W, whose squared norm counts as least[0]
 * at least. rest may be grad. */
static long project_share(const REAL *grad, const REAL *W, REAL *rest, REAL least, long d_in,
                          long begin, long end) {
    for (long s = begin; s < end; s++) {
        const REAL *w = W + s * d_in, *g = grad + s * d_in;
        REAL *to = rest + s * d_in, square = dot(w, w, d_in);
        REAL parallel = dot(g, w, d_in) / (square < least ? least : square);
        _Pragma("omp simd")
        for (long i = 0; i < d_in; i++) to[i] = g[i] - parallel * w[i];
    }
    return 0;
}

long project_rows(const REAL *grad, const REAL *W, REAL *rest, const REAL *least, long d_sae,
                  long d_in, long threads) {
    SHARE_OUT(d_sae, threads, project_share(grad, W, rest, least[0], d_in, begin, end));
}
