//! `GET /`: the playground, a page that asks this server's models and shows what they answer, token by token.
//!
//! Its files are those of `assets/playground`, as they stand: no build step, nothing from elsewhere.

use hyper::Response;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

use crate::http::{self, Body};

/// What the page may do: run the server's own scripts and ask the server itself. No text of a model can become more than text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    /// Where it is found.
    pub path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

static FILES: &[File] = &[
    file_at("/", HTML, include_str!("../../assets/playground/index.html")),
    file_at("/playground/style.css", STYLE, include_str!("../../assets/playground/style.css")),
    file_at("/playground/main.js", SCRIPT, include_str!("../../assets/playground/main.js")),
    file_at("/playground/settings.js", SCRIPT, include_str!("../../assets/playground/settings.js")),
    file_at("/playground/requests.js", SCRIPT, include_str!("../../assets/playground/requests.js")),
    file_at("/playground/answers.js", SCRIPT, include_str!("../../assets/playground/answers.js")),
    file_at("/playground/tokens.js", SCRIPT, include_str!("../../assets/playground/tokens.js")),
    file_at("/playground/beams.js", SCRIPT, include_str!("../../assets/playground/beams.js")),
];

const fn file_at(path: &'static str, content_type: &'static str, text: &'static str) -> File {
    File { path, content_type, text }
}

/// The file at `path`.
pub fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

/// A file of the page. It is asked for again each time, so that it is always this version's.
pub fn answer(file: &'static File) -> Response<Body> {
    let mut response = Response::new(http::full(file.text));
    for (name, value) in [
        (CONTENT_TYPE, file.content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::{FILES, file};

    /// All that stands in `text` between `before` and the next `"`.
    fn quoted<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
        text.match_indices(before).filter_map(|(at, _)| text[at + before.len()..].split('"').next())
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        for page in FILES {
            assert!(!page.text.contains("://"), "{} names another server", page.path);
            for before in ["src=\"", "href=\"", "from \"./", "import(\"", "url(\""] {
                for target in quoted(page.text, before).filter(|t| !t.starts_with("data:") && *t != "/openapi.json") {
                    let path = if before == "from \"./" { format!("/playground/{target}") } else { target.to_owned() };
                    assert!(file(&path).is_some(), "{} needs {path}", page.path);
                }
            }
        }
    }

    #[test]
    fn text_is_never_read_as_markup() {
        for page in FILES {
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
                assert!(!page.text.contains(word), "{} has {word}", page.path);
            }
        }
    }
}
