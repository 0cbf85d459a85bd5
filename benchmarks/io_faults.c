/* Fail a call to the file system, as a bad disk or network does: a library for LD_PRELOAD.
 *
 *     gcc -shared -fPIC -O1 -o io_faults.so benchmarks/io_faults.c -ldl
 *
 * The environment of the process says what fails, and may change while it runs:
 *
 *     IO_FAULT_CALL   open, read, write, rename or fsync
 *     IO_FAULT_ERRNO  the number of the error, as 5 for EIO
 *     IO_FAULT_PATH   only files whose path holds this text
 *     IO_FAULT_NTH    the how manieth such call of the process fails, from 1
 *     IO_FAULT_LASTS  1 when every later one fails as well
 *     IO_FAULT_MARK   a file that is made when one has failed
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long seen;

/* Return whether this call fails; then errno is set. */
static int strikes(const char *call, const char *path)
{
    const char *wanted = getenv("IO_FAULT_CALL");
    if (wanted == NULL || strcmp(wanted, call) != 0)
        return 0;
    const char *part = getenv("IO_FAULT_PATH"), *nth = getenv("IO_FAULT_NTH");
    const char *number = getenv("IO_FAULT_ERRNO"), *mark = getenv("IO_FAULT_MARK");
    if (part == NULL || nth == NULL || number == NULL || strstr(path, part) == NULL)
        return 0;

    long count = atomic_fetch_add(&seen, 1) + 1, first = atol(nth);
    int lasts = getenv("IO_FAULT_LASTS") != NULL && *getenv("IO_FAULT_LASTS") == '1';
    if (count < first || (count > first && !lasts))
        return 0;
    /* past the functions below */
    if (mark != NULL)
        syscall(SYS_close, syscall(SYS_openat, AT_FDCWD, mark, O_CREAT | O_WRONLY, 0644));
    errno = atoi(number);
    return 1;
}

static int strikes_descriptor(const char *call, int descriptor)
{
    char link[64], path[PATH_MAX];
    if (getenv("IO_FAULT_CALL") == NULL)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strikes(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                 \
    int name(const char *path, int flags, ...)                                     \
    {                                                                              \
        va_list more;                                                              \
        va_start(more, flags);                                                     \
        mode_t mode = va_arg(more, mode_t);                                        \
        va_end(more);                                                              \
        return strikes("open", path) ? -1 : NEXT(name)(path, flags, mode);         \
    }

#define OPENAT(name)                                                               \
    int name(int folder, const char *path, int flags, ...)                         \
    {                                                                              \
        va_list more;                                                              \
        va_start(more, flags);                                                     \
        mode_t mode = va_arg(more, mode_t);                                        \
        va_end(more);                                                              \
        return strikes("open", path) ? -1 : NEXT(name)(folder, path, flags, mode); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int descriptor, void *buffer, size_t bytes)
{
    return strikes_descriptor("read", descriptor) ? -1 : NEXT(read)(descriptor, buffer, bytes);
}

ssize_t write(int descriptor, const void *buffer, size_t bytes)
{
    return strikes_descriptor("write", descriptor) ? -1 : NEXT(write)(descriptor, buffer, bytes);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    return strikes_descriptor("write", descriptor) ? -1 : NEXT(writev)(descriptor, parts, count);
}

int rename(const char *from, const char *to)
{
    return strikes("rename", to) ? -1 : NEXT(rename)(from, to);
}

int fsync(int descriptor)
{
    return strikes_descriptor("fsync", descriptor) ? -1 : NEXT(fsync)(descriptor);
}
