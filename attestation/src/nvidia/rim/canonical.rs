//! Canonical XML 1.1 (W3C, 2008; and 1.0, which is the same for what is accepted here), without comments: the bytes
//! that a digest or a signature of an XML document is made over.
//!
//! Accepted is the part of XML that reference manifests need: no document type, no entities but the predefined ones, no
//! processing instructions, no `xml:` attributes (which 1.0 and 1.1 inherit differently). [`read`] refuses the rest, so
//! that a canonical form which isn't the W3C's can't occur.

use roxmltree::{Attribute, Document, Node, NodeId, NodeType, ParsingOptions};

use super::RimError;

/// The longest document. Real ones have about 25 KiB.
pub(crate) const DOCUMENT_LEN_MAX: usize = 256 * 1024;
const NODES_MAX: u32 = 8192;
const DEPTH_MAX: usize = 16;
/// Signs of equality, and `xmlns`, in the whole document: the parser's work grows with the square of how many of these
/// one element has.
const ATTRIBUTES_MAX: usize = 2048;
const NAMESPACES_MAX: usize = 32;

/// Reads a document of the accepted part of XML.
pub(super) fn read(xml: &str) -> Result<Document<'_>, RimError> {
    if xml.len() > DOCUMENT_LEN_MAX {
        return Err(RimError::Length { len: xml.len() });
    }
    let count = |sign| xml.matches(sign).count();
    if count("=") > ATTRIBUTES_MAX || count("xmlns") > NAMESPACES_MAX {
        return Err(RimError::Xml("too many attributes or namespaces".to_owned()));
    }
    let options = ParsingOptions {
        nodes_limit: NODES_MAX,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(xml, options).map_err(|e| RimError::Xml(e.to_string()))?;
    for node in document.descendants() {
        let refused = |what: &str| Err(RimError::Xml(format!("{what} at byte {}", node.range().start)));
        if node.is_pi() {
            return refused("a processing instruction");
        }
        if node.ancestors().take(DEPTH_MAX + 1).count() > DEPTH_MAX {
            return refused("too many elements inside each other");
        }
        if node
            .attributes()
            .any(|attribute| attribute.namespace() == Some(roxmltree::NS_XML_URI))
        {
            return refused("an `xml:` attribute");
        }
    }
    Ok(document)
}

/// The canonical form of an element and what is in it, except for the element `without`.
pub(super) fn canonical(apex: Node<'_, '_>, without: Option<NodeId>) -> Vec<u8> {
    let mut writer = Writer {
        out: String::new(),
        without,
    };
    writer.element(apex, true);
    writer.out.into_bytes()
}

struct Writer {
    out: String,
    without: Option<NodeId>,
}

impl Writer {
    /// Recursive: [`read`] bounds the depth.
    fn element(&mut self, node: Node<'_, '_>, apex: bool) {
        let source = node.document().input_text();
        let name = name_at(source, node.range().start + 1);
        self.out.push('<');
        self.out.push_str(name);
        self.namespaces(node, apex);
        let mut attributes: Vec<Attribute<'_, '_>> = node.attributes().collect();
        attributes.sort_by_key(|attribute| (attribute.namespace().unwrap_or_default(), attribute.name()));
        for attribute in attributes {
            self.out.push(' ');
            self.out.push_str(&source[attribute.range_qname()]);
            self.out.push_str("=\"");
            for c in attribute.value().chars() {
                match c {
                    '&' => self.out.push_str("&amp;"),
                    '<' => self.out.push_str("&lt;"),
                    '"' => self.out.push_str("&quot;"),
                    '\t' => self.out.push_str("&#x9;"),
                    '\n' => self.out.push_str("&#xA;"),
                    '\r' => self.out.push_str("&#xD;"),
                    c => self.out.push(c),
                }
            }
            self.out.push('"');
        }
        self.out.push('>');
        for child in node.children() {
            match child.node_type() {
                NodeType::Element if Some(child.id()) == self.without => {}
                NodeType::Element => self.element(child, false),
                NodeType::Text => self.text(child.text().unwrap_or_default()),
                NodeType::Comment | NodeType::PI | NodeType::Root => {}
            }
        }
        self.out.push_str("</");
        self.out.push_str(name);
        self.out.push('>');
    }

    /// The declarations that this element adds to its parent's; at the apex, all that are in scope.
    fn namespaces(&mut self, node: Node<'_, '_>, apex: bool) {
        let parent = node.parent_element().filter(|_| !apex);
        let mut added: Vec<(&str, &str)> = node
            .namespaces()
            .map(|namespace| (namespace.name().unwrap_or_default(), namespace.uri()))
            .filter(|(prefix, uri)| {
                let prefix_or_default = Some(*prefix).filter(|prefix| !prefix.is_empty());
                let outer = parent.and_then(|parent| parent.lookup_namespace_uri(prefix_or_default));
                // `xmlns=""` says something only where a default namespace was declared outside.
                *prefix != "xml" && outer.unwrap_or_default() != *uri
            })
            .collect();
        added.sort_unstable();
        for (prefix, uri) in added {
            self.out.push_str(" xmlns");
            if !prefix.is_empty() {
                self.out.push(':');
                self.out.push_str(prefix);
            }
            self.out.push_str("=\"");
            self.out.push_str(
                &uri.replace('&', "&amp;")
                    .replace('<', "&lt;")
                    .replace('"', "&quot;"),
            );
            self.out.push('"');
        }
    }

    fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.out.push_str("&amp;"),
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '\r' => self.out.push_str("&#xD;"),
                c => self.out.push(c),
            }
        }
    }
}

/// The name with its prefix as it stands in the document: the parser keeps only what the prefix means.
fn name_at(source: &str, start: usize) -> &str {
    let rest = source.get(start..).unwrap_or_default();
    let end = rest.find(|c: char| c.is_ascii_whitespace() || c == '/' || c == '>');
    &rest[..end.unwrap_or(rest.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical_of(xml: &str) -> String {
        let document = read(xml).unwrap();
        String::from_utf8(canonical(document.root_element(), None)).unwrap()
    }

    #[test]
    fn the_canonical_form_is_the_w3cs() {
        for (xml, want) in [
            // Canonical XML 1.1, 3.2 and 3.3, as far as they concern what is accepted here.
            (
                "<?xml version=\"1.0\"?>\n<a>  <b> x </b>\n</a>\n",
                "<a>  <b> x </b>\n</a>",
            ),
            ("<a><!-- not this --><b/></a>", "<a><b></b></a>"),
            (
                "<e3   name = \"elem3\"   id=\"elem3\"   />",
                "<e3 id=\"elem3\" name=\"elem3\"></e3>",
            ),
            (
                "<e5 a:attr='out' b:attr='sorted' attr2='all' attr='I' xmlns:b='http://www.ietf.org' xmlns:a='http://www.w3.org' xmlns='http://example.org'/>",
                "<e5 xmlns=\"http://example.org\" xmlns:a=\"http://www.w3.org\" xmlns:b=\"http://www.ietf.org\" attr=\"I\" attr2=\"all\" b:attr=\"sorted\" a:attr=\"out\"></e5>",
            ),
            (
                "<e6 xmlns='' xmlns:a='http://www.w3.org'><e7 xmlns='http://www.ietf.org'><e8 xmlns='' xmlns:a='http://www.w3.org'><e9 xmlns='' xmlns:a='http://www.ietf.org'/></e8></e7></e6>",
                "<e6 xmlns:a=\"http://www.w3.org\"><e7 xmlns=\"http://www.ietf.org\"><e8 xmlns=\"\"><e9 xmlns:a=\"http://www.ietf.org\"></e9></e8></e7></e6>",
            ),
            (
                "<t>a&#xD;b\r\nc &amp;&lt;&gt;\"</t>",
                "<t>a&#xD;b\nc &amp;&lt;&gt;\"</t>",
            ),
            (
                "<t v='&quot;&#10;&#9;&#13;>&lt;&amp;'/>",
                "<t v=\"&quot;&#xA;&#x9;&#xD;>&lt;&amp;\"></t>",
            ),
            ("<t v='a\n b'/>", "<t v=\"a  b\"></t>"),
            ("<t><![CDATA[<&>]]></t>", "<t>&lt;&amp;&gt;</t>"),
            (
                "<p:t xmlns:p='urn:p'><p:u/></p:t>",
                "<p:t xmlns:p=\"urn:p\"><p:u></p:u></p:t>",
            ),
        ] {
            assert_eq!(canonical_of(xml), want, "{xml}");
        }
    }

    #[test]
    fn a_part_of_a_document_takes_along_the_namespaces_around_it() {
        let document = read("<a xmlns='urn:1' xmlns:z='urn:2'><b><c x='1'/></b></a>").unwrap();
        let c = document
            .descendants()
            .find(|node| node.has_tag_name(("urn:1", "c")))
            .unwrap();
        let form = String::from_utf8(canonical(c, None)).unwrap();
        assert_eq!(form, "<c xmlns=\"urn:1\" xmlns:z=\"urn:2\" x=\"1\"></c>");
    }

    #[test]
    fn what_could_be_a_bomb_or_mean_two_things_is_refused() {
        let deep = |n: usize| format!("{}{}", "<a>".repeat(n), "</a>".repeat(n));
        let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbb\"><!ENTITY c \"&b;&b;&b;\">]><a>&c;</a>";
        let attributes: String = (0..20_000).map(|n| format!(" a{n}='1'")).collect();
        let namespaces: String = (0..2_000).map(|n| format!(" xmlns:n{n}='u:{n}'")).collect();
        for xml in [
            bomb.to_owned(),
            "<a>&unknown;</a>".to_owned(),
            "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>".to_owned(),
            "<a><?php 1 ?></a>".to_owned(),
            "<a xml:lang='en'/>".to_owned(),
            "<a xml:base='x'/>".to_owned(),
            "<a/><b/>".to_owned(),
            "<a b='1' b='2'/>".to_owned(),
            "<a><b></a></b>".to_owned(),
            "<p:a/>".to_owned(),
            deep(DEPTH_MAX + 1),
            deep(30_000),
            format!("<a>{}</a>", "<b/>".repeat(NODES_MAX as usize)),
            format!("<a>{}</a>", "x".repeat(DOCUMENT_LEN_MAX)),
            format!("<a{attributes}/>"),
            format!("<a{namespaces}>{}</a>", "<b xmlns:m='u:m'/>".repeat(2_000)),
            String::new(),
        ] {
            assert!(read(&xml).is_err(), "{}", &xml[..xml.len().min(80)]);
        }
        assert!(read(&deep(DEPTH_MAX - 1)).is_ok());
    }
}
