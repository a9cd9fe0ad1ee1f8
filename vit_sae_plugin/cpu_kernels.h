/* For the C files that cpu_kernels.py compiles. */

/* Shares out 0 ... n among threads: CALL is a function of its share, from begin to end. Returns
 * the largest of its results, or the smallest if that is negative. Without OpenMP, the shares are
 * done one after another. */
#define SHARE_OUT(n, threads, CALL)                                                              \
    long largest = 0, smallest = 0;                                                              \
    _Pragma("omp parallel for num_threads(threads) reduction(max:largest) reduction(min:smallest)") \
    for (long share = 0; share < threads; share++) {                                             \
        long begin = n * share / threads, end = n * (share + 1) / threads;                       \
        long result = begin < end ? CALL : 0;                                                                      \
        if (result > largest) largest = result;                                                  \
        if (result < smallest) smallest = result;                                                \
    }                                                                                            \
    return smallest < 0 ? smallest : largest
