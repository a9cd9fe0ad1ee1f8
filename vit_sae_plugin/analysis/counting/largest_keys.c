/* Keeps the k largest keys of each latent. Compiled and called by largest_keys.py. */
#include <stdint.h>
#include <string.h>

#include "cpu_kernels.h"

#define AT_ONCE 4096

/* Puts a key, and its payload, if there is any, where it belongs in a row that falls. Returns
 * whether it was large enough. */
static int insert(int64_t *row, int32_t *payloads, long k, int64_t key, int32_t payload) {
    long at = 0, last = k - 1; /* its place is between these */
    if (key <= row[last]) return 0;
    while (at < last) {
        long middle = (at + last) / 2;
        if (row[middle] > key) at = middle + 1;
        else last = middle;
    }
    memmove(row + at + 1, row + at, (k - 1 - at) * sizeof *row);
    row[at] = key;
    if (payloads) {
        memmove(payloads + at + 1, payloads + at, (k - 1 - at) * sizeof *payloads);
        payloads[at] = payload;
    }
    return 1;
}

static long images_share(const float *value, const int64_t *index, const int32_t *payload,
                         int64_t *keys, int32_t *payloads, uint8_t *entered, long k,
                         long n_images, long d_sae, long begin, long end) {
    float bar[AT_ONCE]; /* what a value must reach: side by side, as nearly none does */
    for (long start = begin; start < end; start += AT_ONCE) {
        long stop = start + AT_ONCE < end ? start + AT_ONCE : end;
        for (long s = start; s < stop; s++) {
            uint32_t bits = keys[s * k + k - 1] >> 32;
            memcpy(bar + s - start, &bits, sizeof bits);
        }
        for (long image = 0; image < n_images; image++)
            for (long s = start; s < stop; s++) {
                long cell = image * d_sae + s;
                uint32_t bits;
                if (!(value[cell] >= bar[s - start] && value[cell] > 0)) continue;
                memcpy(&bits, value + cell, sizeof bits);
                int64_t key = (int64_t)bits << 32 | (UINT32_MAX - index[image]);
                int32_t *beside = payloads ? payloads + s * k : NULL;
                if (insert(keys + s * k, beside, k, key, payload[cell])) {
#pragma omp atomic write
                    entered[image] = 1;
                }
            }
    }
    return 0;
}

/* The images with a positive value[image][latent] go into the row of each such latent: the higher
 * values first and, where they are equal, the smaller index. entered says which images did. */
long insert_images(const float *value, const int64_t *index, const int32_t *payload,
                   int64_t *keys, int32_t *payloads, uint8_t *entered, long k, long n_images,
                   long d_sae, long threads) {
    SHARE_OUT(d_sae, threads, images_share(value, index, payload, keys, payloads, entered, k,
                                           n_images, d_sae, begin, end));
}
