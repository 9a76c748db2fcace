//! Looking at a library file before anything is opened.
//!
//! Opening runs the library's code, a truncated file kills the process inside of the loader, and the loader says
//! "no such file" of a library for another processor. So the file is looked at first.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::Refusal;

/// The header of a 64-bit ELF file has this size.
const HEADER: usize = 64;
/// The type of a shared object.
const ET_DYN: u16 = 3;
/// The type of a program header that is loaded from the file.
const PT_LOAD: u32 = 1;
/// The type of a section that takes no room in the file.
const SHT_NOBITS: u32 = 8;

/// The processors that a message can name, by their number in ELF.
const MACHINES: [(u16, &str); 8] = [
    (3, "x86"),
    (20, "powerpc"),
    (21, "powerpc64"),
    (22, "s390x"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
];

/// Gives the real path of a library that may be opened.
///
/// The loader looks for a bare name on its own search path, which is never meant here, so the path is made canonical.
pub fn examine(path: &Path) -> Result<PathBuf, Refusal> {
    let real = path.canonicalize().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            Refusal::new("there is no such file", "check the path, or build the plugin: cargo build --release")
        }
        _ => Refusal::new(format!("its path cannot be followed: {e}"), "check the path and the links in it"),
    })?;
    let found = std::fs::metadata(&real).map_err(|e| unreadable(&e))?;
    if found.is_dir() {
        return Err(Refusal::new(
            "it is a folder",
            "name the library in it: cargo build --release leaves it as target/release/lib*.so",
        ));
    }
    // Before opening: opening a named pipe would wait for its writer.
    if !found.is_file() {
        return Err(Refusal::new("it is not a regular file", "name the library that cargo built"));
    }
    let mut file = File::open(&real).map_err(|e| unreadable(&e))?;
    if cfg!(target_os = "linux") {
        elf(&mut file, found.len())?;
    }
    Ok(real)
}

fn unreadable(e: &io::Error) -> Refusal {
    Refusal::new(format!("it cannot be read: {e}"), "check the file's permissions")
}

fn truncated(needed: u64, found: u64) -> Refusal {
    Refusal::new(
        format!("the file is truncated: its header speaks of {needed} bytes, there are {found}"),
        "copy or build it again, and check the free space of the disk",
    )
}

fn no_library(what: &str) -> Refusal {
    Refusal::new(what, "name a library that cargo built from a crate with crate-type = [\"cdylib\"]")
}

/// Checks a 64-bit little-endian ELF file of `size` bytes.
fn elf(file: &mut File, size: u64) -> Result<(), Refusal> {
    if size == 0 {
        return Err(no_library("the file is empty"));
    }
    let mut header = [0; HEADER];
    let read = fill(file, &mut header).map_err(|e| unreadable(&e))?;
    if !header.starts_with(b"\x7fELF") {
        return Err(no_library("it is not a library (no ELF header)"));
    }
    if read < HEADER {
        return Err(truncated(HEADER as u64, size));
    }
    if header[4] != 2 {
        return Err(no_library("it is not a 64-bit library"));
    }
    if header[5] != 1 {
        return Err(no_library("it is a library for a big-endian machine"));
    }
    let machine = u16_at(&header, 18);
    let ours = MACHINES.iter().find(|(_, name)| *name == std::env::consts::ARCH);
    if ours.is_some_and(|(number, _)| *number != machine) {
        let name = MACHINES.iter().find(|(number, _)| *number == machine).map_or("another machine", |(_, name)| name);
        return Err(Refusal::new(
            format!("it is built for {name}, this machine is {}", std::env::consts::ARCH),
            "build the plugin on this machine, or with its --target",
        ));
    }
    if u16_at(&header, 16) != ET_DYN {
        return Err(no_library("it is an ELF file, but not a shared library"));
    }

    // The file must reach to the end of its tables, and of everything that they point to.
    let programs = Table { offset: u64_at(&header, 32), entry: u16_at(&header, 54), count: u16_at(&header, 56), least: 56 };
    let sections = Table { offset: u64_at(&header, 40), entry: u16_at(&header, 58), count: u16_at(&header, 60), least: 64 };
    if programs.count == 0 {
        return Err(no_library("it is an ELF file without anything to load"));
    }
    let mut loaded = false;
    for entry in programs.read(file, size)? {
        loaded |= u32_at(&entry, 0) == PT_LOAD;
        reaches(u64_at(&entry, 8), u64_at(&entry, 32), size)?;
    }
    if !loaded {
        return Err(no_library("it is an ELF file without anything to load"));
    }
    for entry in sections.read(file, size)? {
        if u32_at(&entry, 4) != SHT_NOBITS {
            reaches(u64_at(&entry, 24), u64_at(&entry, 32), size)?;
        }
    }
    Ok(())
}

/// A table of the file.
struct Table {
    offset: u64,
    entry: u16,
    count: u16,
    /// The least size of an entry.
    least: u16,
}

impl Table {
    fn read(&self, file: &mut File, size: u64) -> Result<Vec<Vec<u8>>, Refusal> {
        if self.count == 0 {
            return Ok(Vec::new());
        }
        if self.entry < self.least {
            return Err(no_library("its header is not that of a library"));
        }
        // At most 65535 entries of 65535 bytes, and no more than the file holds.
        let length = u64::from(self.entry) * u64::from(self.count);
        reaches(self.offset, length, size)?;
        let mut bytes = vec![0; length as usize];
        file.seek(SeekFrom::Start(self.offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| unreadable(&e))?;
        Ok(bytes.chunks_exact(usize::from(self.entry)).map(<[u8]>::to_vec).collect())
    }
}

fn reaches(offset: u64, length: u64, size: u64) -> Result<(), Refusal> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        Some(end) => Err(truncated(end, size)),
        None => Err(truncated(u64::MAX, size)),
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
