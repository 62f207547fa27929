//! A text part made from HTML, for readers that show no HTML and for filters that expect one.
//!
//! Not a browser: markup is dropped, blocks become lines, links stand behind their words. One pass over the
//! input; nothing in it can make the work grow faster than its size.

use memchr::memchr;

/// Octets of a link that is written out; longer ones (signed tracking links) would bury the text.
const LINK_SIZE_MAX: usize = 1_024;
/// Lists within lists.
const LISTS_MAX: usize = 16;
/// Octets of a character reference.
const REFERENCE_SIZE_MAX: usize = 12;

/// The text of an HTML document, with LF between lines.
#[must_use]
pub fn plain_text(html: &str) -> String {
    let mut writer = Writer { out: String::with_capacity(html.len() / 2), ..Writer::default() };
    let mut rest = html;
    // Once a tag is not closed none of the rest is searched for its end again.
    let (mut quotes_close, mut tags_close) = (true, true);
    while !rest.is_empty() {
        let next = if tags_close { memchr(b'<', rest.as_bytes()) } else { None };
        let text = &rest[..next.unwrap_or(rest.len())];
        writer.text(text);
        let Some(at) = next else { break };
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.find("-->").map_or("", |end| &comment[end + 3..]);
            continue;
        }
        let begins_tag = rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || "/!?".contains(c));
        if !begins_tag {
            writer.text("<");
            rest = &rest[1..];
            continue;
        }
        let mut end = if quotes_close { end_of_tag(rest) } else { None };
        if end.is_none() {
            quotes_close = false;
            end = memchr(b'>', rest.as_bytes());
        }
        let Some(end) = end else {
            tags_close = false;
            continue;
        };
        let tag = &rest[1..end];
        rest = &rest[end + 1..];
        let name = name_of(tag);
        if !tag.ends_with('/')
            && ["script", "style", "head", "title", "template"].iter().any(|n| name.eq_ignore_ascii_case(n))
        {
            rest = after_close(rest, name);
        } else {
            writer.tag(tag, &name.to_ascii_lowercase());
        }
    }
    writer.finish()
}

/// The index of the `>` that closes a tag, quoted values skipped.
fn end_of_tag(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, b) in text.bytes().enumerate() {
        match (quote, b) {
            (Some(open), b) if open == b => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(b),
            (None, b'>') => return Some(at),
            (None, _) => {}
        }
    }
    None
}

fn name_of(tag: &str) -> &str {
    let tag = tag.strip_prefix('/').unwrap_or(tag);
    &tag[..tag.bytes().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(tag.len())]
}

/// What follows the end tag of this name; nothing if there is none.
fn after_close<'a>(mut rest: &'a str, name: &str) -> &'a str {
    while let Some(at) = memchr(b'<', rest.as_bytes()) {
        rest = &rest[at + 1..];
        let Some(tag) = rest.strip_prefix('/') else { continue };
        if tag.len() >= name.len() && tag.as_bytes()[..name.len()].eq_ignore_ascii_case(name.as_bytes()) {
            return memchr(b'>', rest.as_bytes()).map_or("", |end| &rest[end + 1..]);
        }
    }
    ""
}

/// The value of an attribute, character references resolved.
fn attribute(tag: &str, wanted: &str) -> Option<String> {
    let mut rest = &tag[name_of(tag).len()..];
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '/');
        if rest.is_empty() {
            return None;
        }
        let end = rest.bytes().position(|b| b == b'=' || b.is_ascii_whitespace()).unwrap_or(rest.len());
        let name = &rest[..end];
        rest = rest[end..].trim_start();
        let mut value = "";
        if let Some(after) = rest.strip_prefix('=') {
            rest = after.trim_start();
            let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
            if let Some(quote) = quote {
                let inner = &rest[1..];
                let end = inner.find(quote).unwrap_or(inner.len());
                value = &inner[..end];
                rest = inner.get(end + 1..).unwrap_or("");
            } else {
                let end = rest.bytes().position(|b| b.is_ascii_whitespace()).unwrap_or(rest.len());
                value = &rest[..end];
                rest = &rest[end..];
            }
        } else if end == 0 {
            return None;
        }
        if name.eq_ignore_ascii_case(wanted) {
            let mut text = String::with_capacity(value.len());
            resolve(value, |c| text.push(c));
            return Some(text);
        }
    }
}

#[derive(Default)]
struct Writer {
    out: String,
    /// White space was seen since the last character.
    space: bool,
    /// Line ends owed before the next character.
    lines: u8,
    /// Within `pre`.
    preformatted: u32,
    /// Open lists: 0 for bullets, else the last number.
    lists: Vec<u32>,
    /// A list item's mark, owed before its first character.
    mark: Option<String>,
    /// The open link and where its words begin.
    link: Option<(String, usize)>,
}

impl Writer {
    fn text(&mut self, text: &str) {
        resolve(text, |c| self.character(c));
    }

    fn character(&mut self, c: char) {
        if self.preformatted > 0 && matches!(c, '\n' | ' ') {
            if c == '\n' {
                self.break_line();
            } else {
                self.flush();
                self.out.push(' ');
            }
        } else if c.is_ascii_whitespace() {
            self.space = true;
        } else if !c.is_control() {
            self.flush();
            self.out.push(c);
        }
    }

    /// Writes what is owed before a character.
    fn flush(&mut self) {
        if self.lines > 0 {
            let lines = std::mem::take(&mut self.lines);
            if !self.out.is_empty() {
                self.out.extend(std::iter::repeat_n('\n', usize::from(lines)));
            }
        } else if self.space && !self.out.is_empty() && !self.out.ends_with([' ', '\n']) {
            self.out.push(' ');
        }
        self.space = false;
        if let Some(mark) = self.mark.take() {
            self.out.push_str(&mark);
        }
    }

    /// At least so many line ends before what follows.
    fn block(&mut self, lines: u8) {
        self.lines = self.lines.max(lines);
        self.space = false;
    }

    /// One line end more.
    fn break_line(&mut self) {
        self.lines = (self.lines + 1).min(2);
        self.space = false;
    }

    fn tag(&mut self, tag: &str, name: &str) {
        let opens = !tag.starts_with('/');
        match name {
            "br" => self.break_line(),
            "p" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "table" | "blockquote" => self.block(2),
            "div" | "tr" | "section" | "article" | "header" | "footer" | "main" | "center" | "dl" | "dt"
            | "dd" | "address" => self.block(1),
            "td" | "th" => self.space = true,
            "hr" => {
                self.block(1);
                self.text("---");
                self.block(1);
            }
            "pre" => {
                self.block(2);
                self.preformatted =
                    if opens { self.preformatted + 1 } else { self.preformatted.saturating_sub(1) };
            }
            "ul" | "ol" => {
                self.block(if self.lists.is_empty() || !opens && self.lists.len() == 1 { 2 } else { 1 });
                if !opens {
                    self.lists.pop();
                } else if self.lists.len() < LISTS_MAX {
                    self.lists.push(u32::from(name == "ol"));
                }
            }
            "li" => {
                self.block(1);
                self.mark = opens.then(|| self.item_mark());
            }
            "img" if opens => {
                if let Some(alt) = attribute(tag, "alt") {
                    alt.chars().for_each(|c| self.character(c));
                }
            }
            "a" => self.anchor(tag, opens),
            _ => {}
        }
    }

    fn item_mark(&mut self) -> String {
        let indent = "  ".repeat(self.lists.len().saturating_sub(1));
        match self.lists.last_mut() {
            Some(number) if *number > 0 => {
                let mark = format!("{indent}{number}. ");
                *number += 1;
                mark
            }
            _ => format!("{indent}- "),
        }
    }

    fn anchor(&mut self, tag: &str, opens: bool) {
        if let Some((href, start)) = self.link.take() {
            let words = self.out.get(start..).unwrap_or("").trim();
            let shown = href.strip_prefix("mailto:").unwrap_or(&href);
            if !words.is_empty() && words != shown {
                let target = format!(" ({shown})");
                self.out.push_str(&target);
            }
        }
        if opens {
            let href = attribute(tag, "href").filter(|href| {
                href.len() <= LINK_SIZE_MAX
                    && !href.contains(|c: char| c.is_control() || c == ' ')
                    && ["http://", "https://", "mailto:", "tel:"]
                        .iter()
                        .any(|scheme| href.starts_with(scheme))
            });
            self.link = href.map(|href| (href, self.out.len()));
        }
    }

    fn finish(mut self) -> String {
        if self.link.is_some() {
            self.anchor("/a", false);
        }
        self.out.truncate(self.out.trim_end().len());
        self.out
    }
}

/// Hands out the characters of a text with its character references resolved.
fn resolve(text: &str, mut to: impl FnMut(char)) {
    let mut rest = text;
    while let Some(at) = memchr(b'&', rest.as_bytes()) {
        rest[..at].chars().for_each(&mut to);
        rest = &rest[at..];
        let window = &rest.as_bytes()[..rest.len().min(REFERENCE_SIZE_MAX)];
        let resolved = memchr(b';', window).and_then(|end| Some((end, reference(&rest[1..end])?)));
        match resolved {
            Some((end, c)) => {
                c.chars().for_each(&mut to);
                rest = &rest[end + 1..];
            }
            None => {
                to('&');
                rest = &rest[1..];
            }
        }
    }
    rest.chars().for_each(&mut to);
}

fn reference(name: &str) -> Option<std::borrow::Cow<'static, str>> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        };
        return Some(char::from_u32(code)?.to_string().into());
    }
    let text = match name {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" => "'",
        "nbsp" | "ensp" | "emsp" | "thinsp" => " ",
        "zwnj" | "zwj" | "shy" => "",
        "copy" => "©",
        "reg" => "®",
        "trade" => "™",
        "hellip" => "…",
        "mdash" => "—",
        "ndash" => "–",
        "lsquo" => "‘",
        "rsquo" => "’",
        "ldquo" => "“",
        "rdquo" => "”",
        "sbquo" => "‚",
        "bdquo" => "„",
        "laquo" => "«",
        "raquo" => "»",
        "bull" => "•",
        "middot" => "·",
        "deg" => "°",
        "sect" => "§",
        "times" => "×",
        "euro" => "€",
        "pound" => "£",
        "yen" => "¥",
        "cent" => "¢",
        "larr" => "←",
        "rarr" => "→",
        "auml" => "ä",
        "ouml" => "ö",
        "uuml" => "ü",
        "Auml" => "Ä",
        "Ouml" => "Ö",
        "Uuml" => "Ü",
        "szlig" => "ß",
        "eacute" => "é",
        "Eacute" => "É",
        "egrave" => "è",
        "ecirc" => "ê",
        "agrave" => "à",
        "acirc" => "â",
        "aacute" => "á",
        "iacute" => "í",
        "oacute" => "ó",
        "uacute" => "ú",
        "ccedil" => "ç",
        "ntilde" => "ñ",
        "aring" => "å",
        "oslash" => "ø",
        "aelig" => "æ",
        "iexcl" => "¡",
        "iquest" => "¿",
        _ => return None,
    };
    Some(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(html: &str, expected: &str) {
        assert_eq!(plain_text(html), expected, "{html}");
    }

    #[test]
    fn blocks_become_lines_and_markup_goes() {
        check("<p>Hi</p>", "Hi");
        check("<h1>Hello</h1>\n <p>one\n two</p><p>three<br>four</p>", "Hello\n\none two\n\nthree\nfour");
        check(
            "<html><head><title>x</title><style>p{}</style></head><body>Hi<!-- no --> you</body>",
            "Hi you",
        );
        check("a<script>if (a<b) alert('</p>')</SCRIPT >b", "ab");
        check("<div>a</div><div>b</div>", "a\nb");
        check("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc");
        check("<pre>a\n  b</pre>", "a\n  b");
        check("1 < 2 &amp; 3 &lt; 4 &nope; &#233;&#x20ac;&hellip;", "1 < 2 & 3 < 4 &nope; é€…");
    }

    #[test]
    fn lists_and_links_keep_their_sense() {
        check("<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li></ul>x", "- a\n- b\n  1. c\n  2. d\n\nx");
        check("<a href=\"https://example.com/?a=1&amp;b=2\">Go</a>!", "Go (https://example.com/?a=1&b=2)!");
        check("<a href='https://example.com'>https://example.com</a>", "https://example.com");
        check("<a href=mailto:a@example.com>a@example.com</a>", "a@example.com");
        check("<a href=\"javascript:x()\">Go</a>", "Go");
        check("<img src=x alt=\"A &quot;cat&quot;\">", "A \"cat\"");
    }

    #[test]
    fn broken_markup_ends_and_is_quick() {
        check("a < b <", "a < b <");
        check("<p>a<b", "a<b");
        check("<a title=\"x>y", "y");
        check("<!-- open", "");
        // Each of these would take minutes if the work grew with the square of the size.
        for unit in ["<", "<a ", "<a \"", "<a '>", "&", "<!--", "<script>", "<ul>", "<li>", "<a href='"] {
            let text = plain_text(&unit.repeat(200_000));
            assert!(text.len() <= 4_000_000);
        }
    }

    proptest! {
        #[test]
        fn any_input_gives_text_without_controls(html in "(<[a-z/!]{0,4}|[a-z &;\"'=>\\s]|\\PC){0,200}") {
            let text = plain_text(&html);
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        }
    }
}
