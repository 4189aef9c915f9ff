/* Records what a process does to the files below one directory, in the order in which it happens.
 *
 * Loaded in front of the C library (LD_PRELOAD). One lock is held around every call and the record
 * of it, so that the order of the records is that of the changes, and what was written before a
 * sync is recorded before it. RECORD_BELOW names the directory, RECORD_TO the file of records
 * (tests/faults/disk.py says what they look like). Of a failed call there is no record.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define DESCRIPTORS_MAX 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int records = -1;
static const char *below;
static size_t below_size;
static char followed[DESCRIPTORS_MAX];

struct header {
    char what;
    char reserved[3];
    int32_t descriptor;
    uint64_t number; /* an offset, a length, flags */
    uint32_t first_size, second_size;
};

__attribute__((constructor)) static void begin(void)
{
    const char *to = getenv("RECORD_TO");
    below = getenv("RECORD_BELOW");
    if (!to || !below)
        return;
    below_size = strlen(below);
    records = (int)syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void put(char what, int descriptor, uint64_t number, const void *first, size_t first_size,
                const void *second, size_t second_size)
{
    struct header header = {.what = what, .descriptor = descriptor, .number = number,
                            .first_size = (uint32_t)first_size, .second_size = (uint32_t)second_size};
    struct iovec parts[3] = {{&header, sizeof header}, {(void *)first, first_size}, {(void *)second, second_size}};
    if (syscall(SYS_writev, records, parts, 3) != (long)(sizeof header + first_size + second_size))
        abort();
}

static int is_log_of_rocksdb(const char *path)
{
    /* Written by way of stdio, and nobody depends on it. */
    const char *name = strrchr(path, '/');
    return strncmp(name ? name + 1 : path, "LOG", 3) == 0;
}

static int is_below(const char *path)
{
    return records >= 0 && strncmp(path, below, below_size) == 0 && !is_log_of_rocksdb(path);
}

static int is_followed(int descriptor)
{
    return records >= 0 && descriptor >= 0 && descriptor < DESCRIPTORS_MAX && followed[descriptor];
}

static void put_path(char what, const char *path, const char *other)
{
    put(what, -1, 0, path, strlen(path), other, other ? strlen(other) : 0);
}

static int open_file(const char *path, int flags, mode_t mode)
{
    if (!is_below(path))
        return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    pthread_mutex_lock(&lock);
    int descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (descriptor >= DESCRIPTORS_MAX)
        abort();
    if (descriptor >= 0) {
        followed[descriptor] = 1;
        put('o', descriptor, (uint64_t)flags, path, strlen(path), NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return descriptor;
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return open_file(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return open_file(path, flags | O_LARGEFILE, mode);
}

int close(int descriptor)
{
    if (!is_followed(descriptor))
        return (int)syscall(SYS_close, descriptor);
    pthread_mutex_lock(&lock);
    followed[descriptor] = 0;
    put('c', descriptor, 0, NULL, 0, NULL, 0);
    int result = (int)syscall(SYS_close, descriptor);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    if (!is_followed(descriptor))
        return syscall(SYS_write, descriptor, data, size);
    pthread_mutex_lock(&lock);
    ssize_t written = syscall(SYS_write, descriptor, data, size);
    if (written > 0) {
        off_t end = lseek(descriptor, 0, SEEK_CUR); /* with O_APPEND too */
        put('w', descriptor, (uint64_t)(end - written), data, (size_t)written, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return written;
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    if (!is_followed(descriptor))
        return syscall(SYS_pwrite64, descriptor, data, size, offset);
    pthread_mutex_lock(&lock);
    ssize_t written = syscall(SYS_pwrite64, descriptor, data, size, offset);
    if (written > 0)
        put('w', descriptor, (uint64_t)offset, data, (size_t)written, NULL, 0);
    pthread_mutex_unlock(&lock);
    return written;
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off_t offset)
{
    return pwrite(descriptor, data, size, offset);
}

static int sync_file(long call, int descriptor)
{
    if (!is_followed(descriptor))
        return (int)syscall(call, descriptor);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(call, descriptor);
    if (result == 0)
        put('s', descriptor, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int descriptor) { return sync_file(SYS_fsync, descriptor); }
int fdatasync(int descriptor) { return sync_file(SYS_fdatasync, descriptor); }

int ftruncate(int descriptor, off_t size)
{
    if (!is_followed(descriptor))
        return (int)syscall(SYS_ftruncate, descriptor, size);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_ftruncate, descriptor, size);
    if (result == 0)
        put('t', descriptor, (uint64_t)size, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate64(int descriptor, off_t size) { return ftruncate(descriptor, size); }

int posix_fallocate(int descriptor, off_t offset, off_t size)
{
    struct stat found;
    if (!is_followed(descriptor))
        return syscall(SYS_fallocate, descriptor, 0, offset, size) ? errno : 0;
    pthread_mutex_lock(&lock);
    int error = syscall(SYS_fallocate, descriptor, 0, offset, size) ? errno : 0;
    if (!error && fstat(descriptor, &found) == 0 && found.st_size == offset + size)
        put('t', descriptor, (uint64_t)found.st_size, NULL, 0, NULL, 0); /* it has grown */
    pthread_mutex_unlock(&lock);
    return error;
}

int posix_fallocate64(int descriptor, off_t offset, off_t size)
{
    return posix_fallocate(descriptor, offset, size);
}

int rename(const char *path, const char *other)
{
    if (!is_below(path))
        return (int)syscall(SYS_rename, path, other);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_rename, path, other);
    if (result == 0)
        put_path('r', path, other);
    pthread_mutex_unlock(&lock);
    return result;
}

int link(const char *path, const char *other)
{
    if (!is_below(path))
        return (int)syscall(SYS_link, path, other);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_link, path, other);
    if (result == 0)
        put_path('l', path, other);
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path)
{
    if (!is_below(path))
        return (int)syscall(SYS_unlink, path);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_unlink, path);
    if (result == 0)
        put_path('u', path, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    if (!is_below(path))
        return (int)syscall(SYS_mkdir, path, mode);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_mkdir, path, mode);
    if (result == 0)
        put_path('m', path, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}
