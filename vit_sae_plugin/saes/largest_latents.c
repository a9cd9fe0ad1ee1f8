/* The largest latents of each row or of a batch. Compiled and called by largest_latents.py.
 *
 * Columns are dealt out to groups. The k-th largest of the groups' maxima is a bound that at least
 * k values reach, and few more where there are several times as many groups as k: only those are
 * looked at again. A latent counts if it is positive; NaN counts as the largest.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_kernels.h"

/* REAL, float or double, is given on the compiler's command line. */

static REAL clean(REAL h) { return h > 0 ? h : h != h ? (REAL)INFINITY : 0; }

/* top[group] = the largest value of the group's columns: every n_groups-th. */
static void group_maxima(const REAL *value, long n, REAL *top, long n_groups) {
    memcpy(top, value, n_groups * sizeof *top);
    for (long start = n_groups; start < n; start += n_groups) {
        long width = n - start < n_groups ? n - start : n_groups;
        for (long i = 0; i < width; i++)
            top[i] = value[start + i] > top[i] ? value[start + i] : top[i];
    }
}

/* The k-th largest of n values, by halving the part that holds it; their order changes. */
static REAL kth_largest(REAL *value, long n, long k) {
    long low = 0, high = n - 1, wanted = k - 1;
    while (low < high) {
        REAL a = value[low], b = value[(low + high) / 2], c = value[high];
        REAL pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        long i = low, j = high;
        while (i <= j) {
            while (value[i] > pivot) i++;
            while (value[j] < pivot) j--;
            if (i > j) break;
            REAL swapped = value[i];
            value[i++] = value[j], value[j--] = swapped;
        }
        if (wanted <= j) high = j;
        else if (wanted >= i) low = i;
        else return value[wanted];
    }
    return value[wanted];
}

/* The columns whose value is positive and reaches the bound. */
static long collect(const REAL *value, long n, REAL bound, int32_t *column) {
    long found = 0;
    for (long i = 0; i < n; i++) {
        column[found] = i;
        found += value[i] >= bound && value[i] > 0;
    }
    return found;
}

/* Of equal latents the first are kept. Row r's go to latent and act from r * k on; n_kept[r] says
 * how many they are. */
static long rows_share(const REAL *h, int64_t *n_kept, int32_t *latent, REAL *act, long k,
                       long n_groups, long d_sae, long begin, long end) {
    REAL *value = malloc(d_sae * sizeof *value), *part = malloc(d_sae * sizeof *part);
    int32_t *column = malloc((d_sae + 1) * sizeof *column);
    int failed = !value || !part || !column;
    for (long r = begin; r < end && !failed; r++) {
        const REAL *row = h + r * d_sae;
        for (long i = 0; i < d_sae; i++) value[i] = clean(row[i]);
        group_maxima(value, d_sae, part, n_groups);
        REAL bound = kth_largest(part, n_groups, k);
        long n = collect(value, d_sae, bound, column), n_equal = n, kept = 0;
        if (n > k) {
            for (long i = 0; i < n; i++) part[i] = value[column[i]];
            bound = kth_largest(part, n, k);
            n_equal = k;
            for (long i = 0; i < n; i++) n_equal -= value[column[i]] > bound;
        }
        for (long i = 0; i < n; i++) {
            REAL v = value[column[i]];
            if (v < bound || (v == bound && n_equal-- <= 0)) continue;
            latent[r * k + kept] = column[i];
            act[r * k + kept++] = row[column[i]];
        }
        n_kept[r] = kept;
    }
    free(value), free(part), free(column);
    return -failed;
}

long largest_of_rows(const REAL *h, int64_t *n_kept, int32_t *latent, REAL *act, long k,
                     long n_groups, long d_sae, long n_rows, long threads) {
    SHARE_OUT(n_rows, threads,
              rows_share(h, n_kept, latent, act, k, n_groups, d_sae, begin, end));
}

static long maxima_share(const REAL *h, REAL *top, long n_groups, long d_sae, long begin,
                         long end) {
    REAL *value = malloc(d_sae * sizeof *value);
    for (long r = begin; r < end && value; r++) {
        for (long i = 0; i < d_sae; i++) value[i] = clean(h[r * d_sae + i]);
        group_maxima(value, d_sae, top + r * n_groups, n_groups);
    }
    free(value);
    return -!value;
}

/* Of each row the maxima of its groups. */
long row_maxima(const REAL *h, REAL *top, long n_groups, long d_sae, long n_rows, long threads) {
    SHARE_OUT(n_rows, threads, maxima_share(h, top, n_groups, d_sae, begin, end));
}

static long at_least_share(const REAL *h, const REAL *bound, const int64_t *row_start,
                           int64_t *n_kept, int32_t *latent, REAL *act, long d_sae, long begin,
                           long end) {
    REAL *value = malloc(d_sae * sizeof *value);
    int32_t *column = malloc((d_sae + 1) * sizeof *column);
    int failed = !value || !column;
    for (long r = begin; r < end && !failed; r++) {
        const REAL *row = h + r * d_sae;
        for (long i = 0; i < d_sae; i++) value[i] = clean(row[i]);
        if (n_kept) {
            int n = 0;
            for (long i = 0; i < d_sae; i++) n += (value[i] >= *bound) & (value[i] > 0);
            n_kept[r] = n;
            continue;
        }
        long n = collect(value, d_sae, *bound, column);
        for (long i = 0; i < n; i++) {
            latent[row_start[r] + i] = column[i];
            act[row_start[r] + i] = row[column[i]];
        }
    }
    free(value), free(column);
    return -failed;
}

/* What is positive and reaches a bound: how many of each row, if n_kept isn't NULL; else they
 * themselves, each row's from its row_start on. */
long at_least(const REAL *h, const REAL *bound, const int64_t *row_start, int64_t *n_kept,
              int32_t *latent, REAL *act, long d_sae, long n_rows, long threads) {
    SHARE_OUT(n_rows, threads, at_least_share(h, bound, row_start, n_kept, latent, act, d_sae,
                                              begin, end));
}

/* Of such latents the n largest, which reach the bound, in place; of equal ones the first. */
long keep_largest(const REAL *bound, int64_t *row_start, int32_t *latent, REAL *act, long n,
                  long n_rows, long threads) {
    long n_equal = n, kept = 0;
    (void)threads;
    for (long a = 0; a < row_start[n_rows]; a++) n_equal -= clean(act[a]) > *bound;
    for (long r = 0, a = 0; r < n_rows; r++) {
        for (; a < row_start[r + 1]; a++) {
            REAL v = clean(act[a]);
            if (v < *bound || (v == *bound && n_equal-- <= 0)) continue;
            latent[kept] = latent[a], act[kept++] = act[a];
        }
        row_start[r + 1] = kept;
    }
    return kept;
}
