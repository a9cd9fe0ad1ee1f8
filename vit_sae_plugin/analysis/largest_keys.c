/* Keeps the k largest keys of each latent. Compiled and called by largest_keys.py. */
#include <stdint.h>
#include <string.h>

#include "cpu_kernels.h"

/* Puts each key into the row of keys[latent][k] that it is for, rows which fall, and its payload,
 * if there is any, at the same place. entered says which were large enough. */
static long insert_share(const int64_t *latent, const int64_t *key, const int32_t *payload,
                         int64_t *keys, int32_t *payloads, uint8_t *entered, long k, long n,
                         long begin, long end) {
    for (long i = 0; i < n; i++) {
        if (latent[i] < begin || latent[i] >= end) continue;
        int64_t *row = keys + latent[i] * k;
        entered[i] = key[i] > row[k - 1];
        if (!entered[i]) continue;
        long at = 0, after = k - 1; /* its place is between these */
        while (at < after) {
            long middle = (at + after) / 2;
            if (row[middle] > key[i]) at = middle + 1;
            else after = middle;
        }
        memmove(row + at + 1, row + at, (k - 1 - at) * sizeof *row);
        row[at] = key[i];
        if (payload) {
            int32_t *place = payloads + latent[i] * k + at;
            memmove(place + 1, place, (k - 1 - at) * sizeof *place);
            *place = payload[i];
        }
    }
    return 0;
}

long insert_keys(const int64_t *latent, const int64_t *key, const int32_t *payload, int64_t *keys,
                 int32_t *payloads, uint8_t *entered, long k, long n, long d_sae, long threads) {
    SHARE_OUT(d_sae, threads, insert_share(latent, key, payload, keys, payloads, entered, k, n,
                                           begin, end));
}
