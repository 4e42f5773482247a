//! Memory for a program that lives two milliseconds: handed out from one block, without a system call for each page.
//!
//! musl's allocator maps and unmaps pages as it goes, some hundred times for one command line; that is a tenth of a
//! start. What does not fit into the block, as in a process that stays to serve a terminal, comes from the system's
//! allocator as usual, so that nothing grows without end.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const SIZE: usize = 1024 * 1024;

/// The allocator; `main.rs` installs it.
#[derive(Debug)]
pub struct Arena {
    /// Page-aligned, in zeroed memory that costs nothing until it is touched.
    block: UnsafeCell<Block>,
    /// Offset of what is free. Only ever moved by compare-and-swap, so that no byte is handed out twice.
    next: AtomicUsize,
}

#[repr(align(4096))]
#[derive(Debug)]
#[expect(dead_code, reason = "it is only reached by address")]
struct Block([u8; SIZE]);

// SAFETY: the block is only touched through the pointers handed out, which never overlap (see `next`).
unsafe impl Sync for Arena {}

impl Arena {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "a static needs a const fn")]
    pub const fn new() -> Arena {
        Arena { block: UnsafeCell::new(Block([0; SIZE])), next: AtomicUsize::new(0) }
    }

    /// The offset of a pointer in the block; `None` when it came from the system's allocator.
    fn offset(&self, pointer: *mut u8) -> Option<usize> {
        let offset = pointer.addr().wrapping_sub(self.block.get().addr());
        (offset < SIZE).then_some(offset)
    }

    fn take(&self, layout: Layout) -> Option<usize> {
        let mut next = self.next.load(Relaxed);
        loop {
            let start = next.checked_next_multiple_of(layout.align())?;
            let end = start.checked_add(layout.size()).filter(|end| *end <= SIZE)?;
            // The block is aligned to a page; so is what is in it up to that.
            if layout.align() > 4096 {
                return None;
            }
            match self.next.compare_exchange_weak(next, end, Relaxed, Relaxed) {
                Ok(_) => return Some(start),
                Err(now) => next = now,
            }
        }
    }
}

// SAFETY: memory from the block is aligned as asked, within the block, and not handed out again until it is given back;
// anything else is the system allocator's business.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            // SAFETY: `take` gives offsets within the block.
            Some(start) => unsafe { self.block.get().cast::<u8>().add(start) },
            // SAFETY: the caller's promises are passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match self.offset(pointer) {
            // The last piece is free again; another stays taken until the end.
            Some(start) => drop(self.next.compare_exchange(start + layout.size(), start, Relaxed, Relaxed)),
            // SAFETY: not from the block, so it came from the system's allocator, with this layout.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(start) = self.offset(pointer) else {
            // SAFETY: not from the block, so it came from the system's allocator, with this layout.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        let grown = start.checked_add(size).filter(|end| *end <= SIZE);
        if let Some(end) = grown
            && self.next.compare_exchange(start + layout.size(), end, Relaxed, Relaxed).is_ok()
        {
            return pointer;
        }
        if size <= layout.size() {
            return pointer;
        }
        // SAFETY: the caller promises a size that makes a valid layout; old and new do not overlap, both are at least
        // `layout.size()` bytes.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(pointer, new, layout.size());
                self.dealloc(pointer, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_overlap_and_the_rest_is_the_systems() {
        // Too big for a thread's stack.
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        // SAFETY: every pointer is used within its layout and given back once.
        unsafe {
            let a = arena.alloc(layout(3, 1));
            let b = arena.alloc(layout(64, 64));
            assert!(b.addr() >= a.addr() + 3 && b.addr() % 64 == 0);
            b.write_bytes(7, 64);
            let c = arena.realloc(b, layout(64, 64), 128);
            assert_eq!(b, c, "the last piece grows where it is");
            a.write_bytes(1, 3);
            let d = arena.realloc(a, layout(3, 1), 5);
            assert!(d != a && *d == 1 && *c == 7);
            arena.dealloc(d, layout(5, 1));
            assert_eq!(arena.alloc(layout(5, 1)), d, "the last piece is used again");
            let big = arena.alloc(layout(SIZE + 1, 1));
            assert!(!big.is_null() && arena.offset(big).is_none());
            let bigger = arena.realloc(big, layout(SIZE + 1, 1), 2 * SIZE);
            arena.dealloc(bigger, layout(2 * SIZE, 1));
            let full = arena.realloc(c, layout(128, 64), SIZE);
            assert!(arena.offset(full).is_none() && *full == 7);
            arena.dealloc(full, layout(SIZE, 64));
        }
    }
}
