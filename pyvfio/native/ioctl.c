// SPDX-License-Identifier: BSD-3-Clause
/* An ioctl with the interpreter's lock released, whatever the size of its argument. */
#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* Returns what the ioctl returned, or -errno. */
static int pyvfio_ioctl(int fd, unsigned long request, uintptr_t argument)
{
    int result = ioctl(fd, request, argument);

    return result < 0 ? -errno : result;
}
