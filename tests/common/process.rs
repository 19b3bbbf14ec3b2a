//! The resources of this process, for tests that expect no leftovers.

/// Descriptors by kind.
pub fn open_files() -> Vec<String> {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    files
        .filter_map(|file| Some(std::fs::read_link(file.path()).ok()?.display().to_string()))
        .collect()
}

/// Threads by name.
pub fn threads() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok())
        .collect()
}
