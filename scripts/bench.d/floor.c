// The floor: what a start costs when nothing but the needed system calls is made, for the container that sheep-ns makes by
// default. No option parsing to speak of, no JSON, no checks: a yardstick for scripts/bench, not a tool.
//
//   floor run [net] [overlay LOWER DIR] ROOTFS CMD...   a command in new namespaces; with an overlay of LOWER, made in DIR,
//                                                       mounted on ROOTFS, and removed again
//   floor mount LOWER DIR MERGED                        an overlay
//   floor umount DIR MERGED                             and its end, directories included
//   floor peak CMD...                                   the peak of a command's memory, KiB
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(long result, const char *what) {
    if (result < 0) {
        dprintf(2, "floor: %s: %s\n", what, strerror(errno));
        _exit(125);
    }
}

// MS_NOSUID and so on, as the runtimes' default configuration has them.
enum { HARD = MS_NOSUID | MS_NOEXEC | MS_NODEV };

static void node(const char *name, unsigned minor_number, unsigned major_number) {
    must(mknod(name, S_IFCHR | 0666, makedev(major_number, minor_number)), name);
    must(chmod(name, 0666), name);
}

static void container(const char *rootfs, int net, char **argv) {
    must(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "pdeathsig");
    must(setsid(), "setsid");
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
    if (net) {
        struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
        int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        must(s, "socket");
        must(ioctl(s, SIOCSIFFLAGS, &loopback), "lo");
        close(s);
    }
    must(mount(rootfs, rootfs, NULL, MS_BIND | MS_REC, NULL), "bind root");
    must(chdir(rootfs), "chdir");

    must(mount("proc", "proc", "proc", HARD, NULL), "proc");
    must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"), "dev");
    umask(0);
    node("dev/null", 3, 1);
    node("dev/zero", 5, 1);
    node("dev/full", 7, 1);
    node("dev/random", 8, 1);
    node("dev/urandom", 9, 1);
    node("dev/tty", 0, 5);
    must(mkdir("dev/pts", 0755), "dev/pts");
    must(mkdir("dev/shm", 0755), "dev/shm");
    must(mkdir("dev/mqueue", 0755), "dev/mqueue");
    must(symlink("/proc/self/fd", "dev/fd"), "dev/fd");
    must(symlink("/proc/self/fd/0", "dev/stdin"), "dev/stdin");
    must(symlink("/proc/self/fd/1", "dev/stdout"), "dev/stdout");
    must(symlink("/proc/self/fd/2", "dev/stderr"), "dev/stderr");
    must(symlink("pts/ptmx", "dev/ptmx"), "dev/ptmx");
    must(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"), "devpts");
    must(mount("shm", "dev/shm", "tmpfs", HARD, "mode=1777,size=65536k"), "shm");
    must(mount("mqueue", "dev/mqueue", "mqueue", HARD, NULL), "mqueue");
    if (net)
        must(mount("sysfs", "sys", "sysfs", HARD | MS_RDONLY, NULL), "sysfs");
    else {
        must(mount("/sys", "sys", NULL, MS_BIND, NULL), "sys");
        must(mount(NULL, "sys", NULL, MS_REMOUNT | MS_BIND | HARD | MS_RDONLY, NULL), "sys");
    }

    must(mount("cgroup2", "sys/fs/cgroup", "cgroup2", HARD | MS_RDONLY, NULL), "cgroup2");

    // Masked and read-only paths, the OCI defaults; those that this kernel does not have cost a failed call, as for everybody.
    static const char *masked_files[] = {"proc/asound", "proc/interrupts", "proc/kcore", "proc/keys", "proc/latency_stats", "proc/timer_list",
                                         "proc/timer_stats", "proc/sched_debug"};
    static const char *masked_dirs[] = {"proc/acpi", "proc/scsi", "sys/firmware", "sys/devices/virtual/powercap"};
    static const char *read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
    for (size_t i = 0; i < sizeof masked_files / sizeof *masked_files; i++)
        mount("dev/null", masked_files[i], NULL, MS_BIND, NULL);
    const char *mask = NULL; // the first is a tmpfs, the others are binds of it
    for (size_t i = 0; i < sizeof masked_dirs / sizeof *masked_dirs; i++)
        if (mask)
            mount(mask, masked_dirs[i], NULL, MS_BIND, NULL);
        else if (mount("tmpfs", masked_dirs[i], "tmpfs", HARD | MS_RDONLY, "size=4k") == 0)
            mask = masked_dirs[i];
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++)
        if (mount(read_only[i], read_only[i], NULL, MS_BIND | MS_REC, NULL) == 0)
            must(mount(NULL, read_only[i], NULL, MS_REMOUNT | MS_BIND | HARD | MS_RDONLY, NULL), read_only[i]);

    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "umount old root");
    must(chdir("/"), "chdir /");
    must(sethostname("floor", 5), "sethostname");

    // The fourteen capabilities that docker and podman leave to a container.
    const uint64_t keep = 0xa80425fb;
    for (int cap = 0; cap <= 40; cap++)
        if (!(keep >> cap & 1))
            must(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "capbset");
    must(setgroups(0, NULL), "setgroups");
    must(setresgid(0, 0, 0), "setresgid");
    must(setresuid(0, 0, 0), "setresuid");
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{(uint32_t)keep, (uint32_t)keep, 0}, {0, 0, 0}};
    must(syscall(SYS_capset, &header, data), "capset");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    umask(022);
    must(syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC), "close_range");
    char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    execve(argv[0], argv, environment);
    must(-1, argv[0]);
}

// The overlay: DIR/upper, DIR/work and the target, through the new mount API with directory descriptors.
static void overlay_mount(const char *lower, const char *dir, const char *merged) {
    must(mkdir(dir, 0700), dir);
    int d = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    must(d, dir);
    must(mkdirat(d, "upper", 0755), "upper");
    must(mkdirat(d, "work", 0700), "work");
    must(mkdir(merged, 0755), merged);
    int l = open(lower, O_PATH | O_DIRECTORY | O_CLOEXEC), u = openat(d, "upper", O_PATH | O_CLOEXEC), w = openat(d, "work", O_PATH | O_CLOEXEC);
    int fs = fsopen("overlay", FSOPEN_CLOEXEC);
    must(fs, "fsopen");
    must(fsconfig(fs, FSCONFIG_SET_FD, "lowerdir+", NULL, l), "lowerdir+");
    must(fsconfig(fs, FSCONFIG_SET_FD, "upperdir", NULL, u), "upperdir");
    must(fsconfig(fs, FSCONFIG_SET_FD, "workdir", NULL, w), "workdir");
    must(fsconfig(fs, FSCONFIG_SET_FLAG, "volatile", NULL, 0), "volatile");
    must(fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "create");
    int m = fsmount(fs, FSMOUNT_CLOEXEC, 0);
    must(m, "fsmount");
    must(move_mount(m, "", AT_FDCWD, merged, MOVE_MOUNT_F_EMPTY_PATH), "move_mount");
    close(m);
    close(fs);
    close(l);
    close(u);
    close(w);
    close(d);
}

// What a start of /bin/true leaves in them is empty: no walk is needed.
static void overlay_umount(const char *dir, const char *merged) {
    must(umount2(merged, 0), merged);
    must(rmdir(merged), merged);
    int d = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    must(d, dir);
    must(unlinkat(d, "work/work/incompat/volatile/dirty", 0), "dirty");
    must(unlinkat(d, "work/work/incompat/volatile", AT_REMOVEDIR), "volatile");
    must(unlinkat(d, "work/work/incompat", AT_REMOVEDIR), "incompat");
    must(unlinkat(d, "work/work", AT_REMOVEDIR), "work/work");
    must(unlinkat(d, "work", AT_REMOVEDIR), "work");
    must(unlinkat(d, "upper", AT_REMOVEDIR), "upper");
    must(rmdir(dir), dir);
    close(d);
}

// Runs a command and prints the peak of its memory in KiB. A program that is started begins with the peak of who starts it, so that
// must be small; and busybox's time takes the kernel's KiB for pages.
static int peak(char **command) {
    struct rusage usage;
    int status;
    pid_t pid = vfork();
    must(pid, "vfork");
    if (pid == 0) {
        execvp(command[0], command);
        _exit(127);
    }
    must(wait4(pid, &status, 0, &usage), "wait4");
    printf("%ld\n", usage.ru_maxrss);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv) {
    int i = 2, net = 0;
    const char *lower = NULL, *dir = NULL;
    if (argc == 5 && !strcmp(argv[1], "mount")) {
        overlay_mount(argv[2], argv[3], argv[4]);
        return 0;
    }
    if (argc == 4 && !strcmp(argv[1], "umount")) {
        overlay_umount(argv[2], argv[3]);
        return 0;
    }
    if (argc >= 3 && !strcmp(argv[1], "peak"))
        return peak(argv + 2);
    if (argc < 4 || strcmp(argv[1], "run"))
        errx(2, "usage: floor run|mount|umount|peak ...");
    if (i < argc && !strcmp(argv[i], "net"))
        net = 1, i++;
    if (i + 2 < argc && !strcmp(argv[i], "overlay"))
        lower = argv[i + 1], dir = argv[i + 2], i += 3;
    if (i + 1 >= argc)
        errx(2, "usage: floor run [net] [overlay LOWER DIR] ROOTFS CMD...");
    const char *rootfs = argv[i];

    if (lower)
        overlay_mount(lower, dir, rootfs);
    struct clone_args args = {
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP | (net ? CLONE_NEWNET : 0),
        .exit_signal = SIGCHLD,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    must(pid, "clone3");
    if (pid == 0)
        container(rootfs, net, argv + i + 1);
    int status = 0;
    must(waitpid((pid_t)pid, &status, 0), "waitpid");
    if (lower)
        overlay_umount(dir, rootfs);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
