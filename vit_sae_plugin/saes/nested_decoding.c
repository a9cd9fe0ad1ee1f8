/* The sparse products of nested decoding, for CPUs. Compiled and called by nested_decoding.py.
 *
 * They gather decoder rows for very many short lists of latents. What is gathered from is kept in
 * the second-level cache, as a packed table of one strip of columns, and what is added up in
 * registers for the length of a list. All tables of a strip follow one another, and sums that go on
 * from table to table are packed, too: side by side they lie on few pages, whose addresses the
 * processor remembers. Arrays are contiguous; first_level[row][latent] is at least n_levels where no
 * level keeps the latent. Returns -1 if memory runs out, else 0.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_kernels.h"
#include "strips.h"

#define MOST_LISTED (1L << 22) /* row-latent pairs for which there is room */
#define LISTED_ROWS 512L
#define FEW_LEVELS 16
#define AHEAD 4 /* rows to be read soon */

/* Room for the active latents of a row, in order, and their levels. */
struct active {
    uint16_t *latent;
    uint8_t *level;
};

/* The latents of each level, level after level, and where each level's start; of n latents, whose
 * levels are given. Returns how many there are. There is room for OVERRUN more than n. */
static long list_levels(const uint8_t *level, long n, long n_levels, struct active active,
                        uint16_t *latent, int *start) {
    long n_active = 0;
#ifdef COMPRESSES
    long n_listed = 0;
    for (long s = 0; s < n && n_levels <= FEW_LEVELS; s += 16) {
        __m128i own = _mm_maskz_loadu_epi8(first_lanes(n - s), level + s);
        __mmask16 used =
            _mm_mask_cmplt_epu8_mask(first_lanes(n - s), own, _mm_set1_epi8(n_levels));
        __m512i levels = _mm512_maskz_compress_epi32(used, _mm512_cvtepu8_epi32(own));
        _mm_storeu_si128((__m128i *)(active.level + n_active), _mm512_cvtepi32_epi8(levels));
        n_active += list_lanes(active.latent + n_active, used,
                               _mm512_add_epi32(ascending(), _mm512_set1_epi32(s)));
    }
    for (long l = 0; l < n_levels && n_levels <= FEW_LEVELS; l++) {
        start[l] = n_listed;
        for (long a = 0; a < n_active; a += 16) {
            __m128i own = _mm_loadu_si128((const __m128i *)(active.level + a));
            __m256i which = _mm256_loadu_si256((const __m256i *)(active.latent + a));
            own = _mm_sub_epi8(own, _mm_set1_epi8(l));
            n_listed += list_lanes(latent + n_listed,
                                   _mm_mask_testn_epi8_mask(first_lanes(n_active - a), own, own),
                                   _mm512_cvtepu16_epi32(which));
        }
    }
    if (n_levels <= FEW_LEVELS) return n_listed;
#endif
    int next[257] = {0};
    for (long s = 0; s < n; s++) {
        active.latent[n_active] = s;
        n_active += level[s] < n_levels;
    }
    for (int a = 0; a < n_active; a++) next[level[active.latent[a]] + 1]++;
    for (long l = 0; l < n_levels; l++) start[l] = next[l], next[l + 1] += next[l];
    for (int a = 0; a < n_active; a++) latent[next[level[active.latent[a]]]++] = active.latent[a];
    return n_active;
}

/* added[level][row] = sum of acts[row][s] * W_dec[s] over the latents s whose first level it is,
 * for rows top to top + rows. */
static long decode_tile(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                        REAL *added, long n_rows, long d_sae, long d_in, long n_levels, long top,
                        long rows) {
    long n_tables = parts(d_sae, TABLE_ROWS), most = (d_sae + n_tables - 1) / n_tables;
    vec *table = aligned_alloc(VECTOR_BYTES, most * VECTORS * VECTOR_BYTES);
    /* The lists: of each table, row and level the latents, counted from the table's first. */
    REAL *act = malloc(rows * d_sae * sizeof *act);
    uint16_t *latent = malloc((rows * d_sae + OVERRUN) * sizeof *latent);
    int *list = malloc((n_tables * rows * n_levels + 1) * sizeof *list); /* where each starts */
    vec *sums = aligned_alloc(VECTOR_BYTES, rows * n_levels * VECTORS * VECTOR_BYTES);
    struct active active = {malloc((most + OVERRUN) * sizeof *latent), malloc(most + OVERRUN)};
    int failed = !table || !act || !latent || !list || !sums || !active.latent || !active.level;
    int *start = list;
    long n = 0;

    for (long left = 0; left < d_sae && !failed; left += most)
        for (long r = 0; r < rows; r++) {
            const uint8_t *level = first_level + (top + r) * d_sae + left;
            const REAL *row = acts + (top + r) * d_sae + left;
            long first = n;
            n += list_levels(level, smaller(most, d_sae - left), n_levels, active, latent + n,
                             start);
            for (long l = 0; l < n_levels; l++) *start++ += first;
            for (long i = first; i < n; i++) act[i] = row[latent[i]];
        }
    if (!failed) *start = n;
    for (long column = 0; column < d_in && !failed; column += STRIP) {
        const int *at = list;
        for (long left = 0; left < d_sae; left += most) {
            for (long s = 0; s < smaller(most, d_sae - left); s++) {
                const REAL *row = W_dec + (left + s) * d_in;
                fetch(row + AHEAD * d_in, column);
                load(table + s * VECTORS, row, column, d_in);
            }
            int is_last = left + most >= d_sae;
            vec *so_far = sums;
            for (long r = 0; r < rows; r++)
                for (long l = 0; l < n_levels; l++, at++, so_far += VECTORS) {
                    vec total[VECTORS];
                    EACH_VECTOR total[i] = left ? so_far[i] : (vec){0};
                    for (int a = at[0]; a < at[1]; a++) {
                        const vec *w = table + latent[a] * VECTORS;
                        REAL h = act[a];
                        EACH_VECTOR total[i] += h * w[i];
                    }
                    if (is_last) store(added + (l * n_rows + top + r) * d_in, total, column, d_in);
                    else EACH_VECTOR so_far[i] = total[i];
                }
        }
    }
    free(table), free(act), free(latent), free(list), free(sums);
    free(active.latent), free(active.level);
    return -failed;
}

static long decode_share(const REAL *acts, const uint8_t *first_level, const REAL *W_dec,
                         REAL *added, long n_rows, long d_sae, long d_in, long n_levels,
                         long begin, long end) {
    long rows = smaller(LISTED_ROWS, 1 + MOST_LISTED / d_sae);
    for (; begin < end; begin += rows)
        if (decode_tile(acts, first_level, W_dec, added, n_rows, d_sae, d_in, n_levels, begin,
                        smaller(rows, end - begin)))
            return -1;
    return 0;
}

long decode_rows(const REAL *acts, const uint8_t *first_level, const REAL *W_dec, REAL *added,
                 long n_rows, long d_sae, long d_in, long n_levels, long threads) {
    SHARE_OUT(n_rows, threads, decode_share(acts, first_level, W_dec, added, n_rows, d_sae, d_in,
                                            n_levels, begin, end));
}
