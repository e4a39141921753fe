//! [`Source`]: a file, and a view of its Rust code without comments, strings and inline tests.

/// A text file of the repository.
pub(super) struct Source {
    /// Its path from the root, with `/`.
    pub(super) path: String,
    /// Its text.
    pub(super) text: String,
    /// For Rust: the text with comments and the contents of strings blanked, byte for byte. Else empty.
    pub(super) code: String,
    /// For Rust: `code` with `#[cfg(test)]` modules blanked as well; all of it in a file of tests.
    pub(super) product_code: String,
}

impl Source {
    pub(super) fn new(path: &str, text: impl Into<String>) -> Self {
        let (path, text) = (path.replace('\\', "/"), text.into());
        let code = if path.ends_with(".rs") { blank_comments_and_strings(&text) } else { String::new() };
        let product_code = if is_test_path(&path) { String::new() } else { blank_inline_tests(&code) };
        Self { path, text, code, product_code }
    }

    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    pub(super) fn is_kernel(&self) -> bool {
        self.path.ends_with(".cu") || self.path.ends_with(".cuh")
    }

    /// Whether the file lies in `folder` (no slash at its end) or is the module file beside it.
    pub(super) fn is_in(&self, folder: &str) -> bool {
        let rest = self.path.strip_prefix(folder);
        rest.is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
    }
}

/// A file that holds nothing but tests.
fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| part == "tests")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
        || path.ends_with("/testing.rs")
}

/// Where `word` stands in `code` as a word of its own: byte offsets.
pub(super) fn find_word<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let starts = !word.starts_with(is_part) || !before.is_some_and(is_part);
        let ends = !word.ends_with(is_part) || !after.is_some_and(is_part);
        starts && ends
    })
}

/// The line of a byte offset, from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// Blanks what the compiler does not read as code. Offsets and lines stay as they are.
fn blank_comments_and_strings(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let is_inside_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let end = if rest.starts_with(b"//") {
            at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            at + block_comment_len(rest)
        } else if let Some(len) = raw_string_len(rest).filter(|_| !is_inside_word) {
            at + len
        } else if rest[0] == b'"' {
            at + quoted_len(rest)
        } else if rest[0] == b'\'' {
            at + char_len(rest)
        } else {
            at += 1;
            continue;
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of `r"..."`, `r#"..."#`, `br"..."` and the like at the beginning of `rest`.
fn raw_string_len(rest: &[u8]) -> Option<usize> {
    let prefix = rest.iter().take_while(|byte| b"bcr".contains(byte)).count();
    if prefix == 0 || prefix > 2 || rest[prefix - 1] != b'r' {
        return None;
    }
    let num_hashes = rest[prefix..].iter().take_while(|&&byte| byte == b'#').count();
    let open = prefix + num_hashes;
    if rest.get(open) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', num_hashes)).collect();
    let body = &rest[open + 1..];
    let len = body.windows(close.len()).position(|window| window == close).map(|at| at + close.len());
    Some(open + 1 + len.unwrap_or(body.len()))
}

fn quoted_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of a character literal, or 1 for the quote of a lifetime.
fn char_len(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        // The escaped character itself may be a quote.
        return rest.iter().skip(3).position(|&byte| byte == b'\'').map_or(rest.len(), |at| at + 4);
    }
    // One character of up to four bytes, then the closing quote; a lifetime has none.
    let first = rest.get(1).copied().unwrap_or(0);
    let width = match first {
        0xF0.. => 4,
        0xE0.. => 3,
        0xC0.. => 2,
        _ => 1,
    };
    if rest.get(1 + width) == Some(&b'\'') { width + 2 } else { 1 }
}

/// Blanks what follows `#[cfg(test)]`, up to the brace that closes it, or the semicolon if that comes first.
fn blank_inline_tests(code: &str) -> String {
    let mut product = code.as_bytes().to_vec();
    for (at, attribute) in code.match_indices("#[cfg(test)]") {
        let mut depth = 0usize;
        for (offset, byte) in code.as_bytes()[at + attribute.len()..].iter().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if (depth == 0) && matches!(byte, b'}' | b';') {
                let end = at + attribute.len() + offset + 1;
                for byte in &mut product[at..end] {
                    if *byte != b'\n' {
                        *byte = b' ';
                    }
                }
                break;
            }
        }
    }
    String::from_utf8_lossy(&product).into_owned()
}
