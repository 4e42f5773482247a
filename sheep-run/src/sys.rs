//! The few system calls that neither rustix nor nix offers as safe functions.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, RawFd};

use nix::libc;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, poll};
use rustix::mm::{Advice, madvise};

/// Takes over a descriptor that the parent process left open for this one, by the number it told us. Called once for
/// each number, at the start, before anything else is opened.
pub fn inherited(fd: RawFd) -> File {
    // SAFETY: the caller owns the descriptor: it was made inheritable for this process alone, and nothing else here
    // knows its number.
    unsafe { File::from_raw_fd(fd) }
}

/// Closes every descriptor above 2 but those in `keep`: whatever a shell leaked into us must not stay open for as long
/// as a container runs.
pub fn close_all_but(keep: &mut [RawFd]) -> io::Result<()> {
    keep.sort_unstable();
    let mut first = 3;
    for &fd in keep.iter() {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointers. Called before this process has opened anything of its own, so no owned descriptor is
    // closed behind its owner's back.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where this program's own code is mapped.
#[derive(Debug)]
pub struct Text(Vec<(usize, usize)>);

impl Text {
    /// Looks it up. Nothing, where that cannot be done.
    pub fn find() -> Text {
        let smaps = std::fs::read("/proc/self/smaps").unwrap_or_default();
        Text(clean_file_mappings(&String::from_utf8_lossy(&smaps)))
    }

    /// Lets go of the code's pages: they are read again from the page cache when they are needed. A monitor waits for
    /// days, and most of this program is for what comes before and after.
    #[inline(always)]
    pub fn let_go(&self) {
        for &(start, end) in &self.0 {
            // SAFETY: the range is a private mapping of a file that nobody can write through, and has no page that
            // differs from the file: whatever is touched again is what it was. A failure leaves the pages: no harm.
            let _ = unsafe { madvise(start as *mut _, end - start, Advice::LinuxDontNeed) };
        }
    }

    /// Polls without a time limit and without the code's pages. Both calls are in this one function, so that waiting
    /// needs one page of code (and what the kernel maps around it).
    #[inline(never)]
    pub fn poll_without(&self, fds: &mut [PollFd<'_>]) -> rustix::io::Result<usize> {
        self.let_go();
        poll(fds, None)
    }
}

/// The address ranges in the text of an `smaps` file that map a file, cannot be written, and have no page of their own
/// (relocations make some): their pages can go and come back.
fn clean_file_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if let Some((start, end)) = first.split_once('-') {
            let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
            let range = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16));
            current = match range {
                (Ok(start), Ok(end)) if is_file && !second.contains('w') => Some((start, end)),
                _ => None,
            };
        } else if first == "Anonymous:" && second == "0" {
            ranges.extend(current.take());
        }
    }
    ranges
}

/// Whether this process was started with the signal ignored (`nohup`, `cmd &` in a script): it must stay so.
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: sigaction is plain data, for which all zeroes is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null second argument only asks; the third points to a sigaction that outlives the call.
    let result = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::PollFlags;

    #[test]
    fn only_clean_pages_of_files_are_let_go_of() {
        let smaps = "\
1000-2000 r-xp 00000000 fe:00 42                     /bin/x
Rss:                   4 kB
Anonymous:             0 kB
2000-3000 r--p 00001000 fe:00 42                     /bin/x
Anonymous:             4 kB
3000-4000 rw-p 00002000 fe:00 42                     /bin/x
Anonymous:             0 kB
4000-5000 r--p 00000000 00:00 0                      [vvar]
Anonymous:             0 kB
5000-6000 r--p 00000000 00:00 0
Anonymous:             0 kB
";
        assert_eq!(clean_file_mappings(smaps), [(0x1000, 0x2000)]);
        // Letting go of one's own code while it runs is fine.
        let stderr = std::io::stderr();
        let ready = Text::find().poll_without(&mut [PollFd::new(&stderr, PollFlags::OUT)]);
        assert_eq!(ready, Ok(1));
    }
}
