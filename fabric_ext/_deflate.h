/* Raw DEFLATE encoder (RFC 1951) made for one job: many small messages that share a window (RFC 7692).
 *
 * Owns: the sender's sliding window and hash table, and the bits it writes.
 * Never: decodes anything (what a peer sent goes to zlib), fails after creation, calls Python, or keeps a
 * caller's pointer. Not thread-safe: what one call works in is shared by the process, so the GIL must be held.
 */
#ifndef FABRIC_DEFLATE_H
#define FABRIC_DEFLATE_H

#include <stddef.h>
#include <stdint.h>

typedef struct fabric_deflate fabric_deflate;

/* window_bits 8..15 (8 too, unlike zlib), level 1..9, hash_bits 8..16. NULL when there is no memory. */
fabric_deflate *fabric_deflate_new(int window_bits, int level, int hash_bits);
void fabric_deflate_free(fabric_deflate *d);

/* Bytes that one encoder holds; constant over its life. */
size_t fabric_deflate_memory(int window_bits, int level, int hash_bits);

/* The next message refers to nothing before it. Constant time. */
void fabric_deflate_forget(fabric_deflate *d);

/* The receiver's window has moved by these bytes, which were compressed elsewhere (a broadcast). */
void fabric_deflate_skip(fabric_deflate *d, const uint8_t *src, size_t n);

/* Most bytes that a message of n bytes can need in `out` below. */
size_t fabric_deflate_bound(size_t n);

/* One whole message, ended as RFC 7692 §7.2.1 asks: byte-aligned by an empty stored block, whose last four
 * octets (00 00 ff ff) are left out. Returns the bytes written to `out`, which holds fabric_deflate_bound(n). */
size_t fabric_deflate_message(fabric_deflate *d, const uint8_t *src, size_t n, uint8_t *out);

/* Complete blocks that make a decompressor repeat the last n bytes of its window, 3 <= n <= 32768: the way to
 * read a window out of a zlib that cannot be asked for it. Returns the bytes written to `out`, at most
 * FABRIC_DEFLATE_RECALL. */
#define FABRIC_DEFLATE_RECALL 1024
size_t fabric_deflate_recall(size_t n, uint8_t *out);

#endif
