// SPDX-License-Identifier: BSD-3-Clause
/* The other ends of the baselines, each a process of its own on an inherited socket. */
#include "wire.h"

int echo_peer(int fd, uint32_t request, uint32_t reply);
int sink_peer(int fd, uint32_t size);
int serve_peer(int listening);

int main(int argc, char **argv)
{
    int fd, failed = -EINVAL;

    if (argc < 3)
        return EINVAL;
    fd = atoi(argv[2]);
    if (!strcmp(argv[1], "echo") && argc == 5)
        failed = echo_peer(fd, (uint32_t)atoi(argv[3]), (uint32_t)atoi(argv[4]));
    else if (!strcmp(argv[1], "sink") && argc == 4)
        failed = sink_peer(fd, (uint32_t)atoi(argv[3]));
    else if (!strcmp(argv[1], "serve"))
        failed = serve_peer(fd);
    return -failed;
}
