//! Hostile XML to a small tree with its namespaces resolved, and such a tree to XML.
//!
//! Not a general XML library: no DTD, no entities beyond the five predefined ones and character
//! references, UTF-8 only, no comments or processing instructions in the tree.
//!
//! Invariant: whatever comes in, memory and time stay proportional to [`MAX_BYTES`].

use quick_xml::{
    NsReader, XmlVersion,
    escape::{resolve_xml_entity, unescape},
    events::{BytesStart, Event},
    name::ResolveResult,
};
use std::{collections::BTreeSet, fmt::Write, sync::Arc};

/// A longer document is refused unread.
pub const MAX_BYTES: usize = 256 * 1024;
/// Elements inside each other.
pub const MAX_DEPTH: usize = 32;
/// Elements in a document.
pub const MAX_ELEMENTS: usize = 10_000;
/// Attributes of one element, namespace declarations not counted.
pub const MAX_ATTRIBUTES: usize = 32;
/// Namespace declarations in force at one place; gSOAP declares about a hundred on the root.
const MAX_NAMESPACES: usize = 256;

/// An element with its attributes, its child elements and its text.
///
/// Text between child elements is kept in one piece; white space alone is dropped there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    namespace: Arc<str>,
    name: String,
    attributes: Vec<Attribute>,
    children: Vec<Element>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Attribute {
    /// Empty for an attribute without prefix, which is in no namespace.
    namespace: Arc<str>,
    name: String,
    value: String,
}

/// Why a text is not XML that is read here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// Not well-formed, or cut off.
    #[error("not well-formed XML: {0}")]
    Malformed(String),
    /// Well-formed, perhaps, but of a kind that no peer needs.
    #[error("XML with {0} is refused")]
    Refused(&'static str),
}

impl Element {
    /// An empty element.
    pub fn new(namespace: &str, name: &str) -> Self {
        Element {
            namespace: namespace.into(),
            name: name.to_owned(),
            attributes: Vec::new(),
            children: Vec::new(),
            text: String::new(),
        }
    }

    /// An element that holds a text.
    pub fn with_text(namespace: &str, name: &str, text: impl Into<String>) -> Self {
        Element { text: text.into(), ..Element::new(namespace, name) }
    }

    /// Adds an attribute in no namespace.
    pub fn attribute(mut self, name: &str, value: impl Into<String>) -> Self {
        self.attributes.push(Attribute { namespace: "".into(), name: name.to_owned(), value: value.into() });
        self
    }

    /// Adds an attribute in a namespace.
    pub fn attribute_ns(mut self, namespace: &str, name: &str, value: impl Into<String>) -> Self {
        self.attributes.push(Attribute {
            namespace: namespace.into(),
            name: name.to_owned(),
            value: value.into(),
        });
        self
    }

    /// Adds a child element.
    pub fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    /// Adds child elements.
    pub fn with_children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    /// The namespace; empty for none.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The local name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is the element of that name.
    pub fn is(&self, namespace: &str, name: &str) -> bool {
        &*self.namespace == namespace && self.name == name
    }

    /// The child elements in order.
    pub fn children(&self) -> &[Element] {
        &self.children
    }

    /// The first child element of that name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.is(namespace, name))
    }

    /// Every child element of that name.
    pub fn find_all<'a>(&'a self, namespace: &'a str, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.is(namespace, name))
    }

    /// The text without white space around it.
    pub fn text(&self) -> &str {
        self.text.trim()
    }

    /// The text of the first child element of that name.
    pub fn text_of(&self, namespace: &str, name: &str) -> Option<&str> {
        self.find(namespace, name).map(Element::text)
    }

    /// The value of an attribute that is in no namespace.
    pub fn get_attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|attribute| attribute.namespace.is_empty() && attribute.name == name)
            .map(|attribute| attribute.value.as_str())
    }

    /// Reads a document.
    pub fn parse(document: &[u8]) -> Result<Element, XmlError> {
        if document.len() > MAX_BYTES {
            return Err(XmlError::Refused("more than 256 kB"));
        }
        let document = document.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(document);
        let text = std::str::from_utf8(document).map_err(|_| XmlError::Refused("text that is not UTF-8"))?;
        Parser::new(text).run()
    }

    /// Writes a document, every namespace declared on the root element.
    pub fn to_xml(&self) -> String {
        self.to_xml_declaring(&[])
    }

    /// As [`to_xml`](Self::to_xml), declaring also namespaces that occur only inside texts.
    pub(super) fn to_xml_declaring(&self, also: &[&str]) -> String {
        let mut namespaces: BTreeSet<&str> = also.iter().copied().collect();
        self.collect_namespaces(&mut namespaces);
        let mut prefixes = Vec::new();
        let mut unknown = 0;
        for namespace in namespaces {
            if namespace.is_empty() || namespace == XML_NAMESPACE {
                continue;
            }
            let known = PREFIXES.iter().find(|(_, known)| *known == namespace);
            let prefix = known.map_or_else(
                || {
                    unknown += 1;
                    format!("n{unknown}")
                },
                |(prefix, _)| (*prefix).to_owned(),
            );
            prefixes.push((namespace, prefix));
        }
        let mut xml = String::from(r#"<?xml version="1.0" encoding="UTF-8"?>"#);
        self.write(&mut xml, &prefixes, true);
        xml
    }

    fn collect_namespaces<'a>(&'a self, namespaces: &mut BTreeSet<&'a str>) {
        namespaces.insert(&self.namespace);
        namespaces.extend(self.attributes.iter().map(|attribute| &*attribute.namespace));
        for child in &self.children {
            child.collect_namespaces(namespaces);
        }
    }

    fn write(&self, xml: &mut String, prefixes: &[(&str, String)], root: bool) {
        let qualified = |namespace: &str, name: &str| match namespace {
            "" => name.to_owned(),
            XML_NAMESPACE => format!("xml:{name}"),
            _ => {
                let (_, prefix) =
                    prefixes.iter().find(|(known, _)| *known == namespace).expect("collected before");
                format!("{prefix}:{name}")
            }
        };
        let name = qualified(&self.namespace, &self.name);
        write!(xml, "<{name}").expect("writing to a string");
        if root {
            for (namespace, prefix) in prefixes {
                write!(xml, r#" xmlns:{prefix}=""#).expect("writing to a string");
                escape(xml, namespace);
                xml.push('"');
            }
        }
        for attribute in &self.attributes {
            let name = qualified(&attribute.namespace, &attribute.name);
            write!(xml, r#" {name}=""#).expect("writing to a string");
            escape(xml, &attribute.value);
            xml.push('"');
        }
        if self.children.is_empty() && self.text.is_empty() {
            xml.push_str("/>");
            return;
        }
        xml.push('>');
        escape(xml, &self.text);
        for child in &self.children {
            child.write(xml, prefixes, false);
        }
        write!(xml, "</{name}>").expect("writing to a string");
    }
}

const XML_NAMESPACE: &str = "http://www.w3.org/XML/1998/namespace";

/// The prefixes that ONVIF's documents use; careless peers compare them instead of the namespaces.
const PREFIXES: [(&str, &str); 9] = [
    ("env", super::SOAP_12),
    ("soap", super::SOAP_11),
    ("ter", super::ONVIF_ERROR),
    ("tds", crate::onvif::DEVICE_NS),
    ("tr2", crate::onvif::MEDIA2_NS),
    ("tup", crate::onvif::UPLINK_NS),
    ("tas", crate::onvif::SECURITY_NS),
    ("tt", crate::onvif::SCHEMA_NS),
    ("wsse", super::wsse::WSSE),
];

/// Text and attribute values alike. What XML cannot carry becomes U+FFFD.
fn escape(xml: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '"' => xml.push_str("&quot;"),
            // Plain, they would come back as spaces or line feeds.
            '\t' => xml.push_str("&#9;"),
            '\n' => xml.push_str("&#10;"),
            '\r' => xml.push_str("&#13;"),
            other if is_xml_character(other) => xml.push(other),
            _ => xml.push('\u{FFFD}'),
        }
    }
}

/// XML 1.0 §2.2.
fn is_xml_character(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

struct Parser<'a> {
    reader: NsReader<&'a [u8]>,
    open: Vec<Element>,
    root: Option<Element>,
    elements: usize,
    /// Elements of one document share their few namespaces.
    namespaces: Vec<Arc<str>>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let mut reader = NsReader::from_str(text);
        reader.resolver_mut().set_max_namespace_bindings(MAX_NAMESPACES);
        Parser { reader, open: Vec::new(), root: None, elements: 0, namespaces: vec!["".into()] }
    }

    fn run(mut self) -> Result<Element, XmlError> {
        loop {
            let event = self.reader.read_event().map_err(malformed)?;
            match event {
                Event::Start(start) => {
                    let element = self.begin(&start)?;
                    self.open.push(element);
                }
                Event::Empty(start) => {
                    let element = self.begin(&start)?;
                    self.finish(element)?;
                }
                Event::End(_) => {
                    let element = self.open.pop().ok_or_else(|| malformed("an end without a beginning"))?;
                    self.finish(element)?;
                }
                Event::Text(text) => self.text(&text.xml_content(XmlVersion::Implicit1_0))?,
                Event::CData(text) => self.text(&text.xml_content(XmlVersion::Implicit1_0))?,
                Event::GeneralRef(reference) => match reference.resolve_char_ref().map_err(malformed)? {
                    Some(character) => self.text(character.encode_utf8(&mut [0; 4]))?,
                    None => {
                        let text =
                            resolve_xml_entity(&reference).ok_or(XmlError::Refused("entities of its own"))?;
                        self.text(text)?;
                    }
                },
                Event::DocType(_) => return Err(XmlError::Refused("a document type")),
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        if !self.open.is_empty() {
            return Err(malformed("it ends in the middle"));
        }
        self.root.ok_or_else(|| malformed("no element"))
    }

    fn begin(&mut self, start: &BytesStart<'_>) -> Result<Element, XmlError> {
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            return Err(XmlError::Refused("more than 10,000 elements"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(XmlError::Refused("elements nested deeper than 32"));
        }
        let resolver = self.reader.resolver();
        let (namespace, name) = resolver.resolve_element(start.name());
        let namespace = intern(&mut self.namespaces, namespace)?;
        let mut element = Element {
            namespace,
            name: name.as_ref().to_owned(),
            attributes: Vec::new(),
            children: Vec::new(),
            text: String::new(),
        };
        // The library's own check for repeated names takes quadratic time.
        for attribute in start.attributes().with_checks(false) {
            let attribute = attribute.map_err(malformed)?;
            if attribute.key.as_namespace_binding().is_some() {
                continue;
            }
            if element.attributes.len() == MAX_ATTRIBUTES {
                return Err(XmlError::Refused("more than 32 attributes on an element"));
            }
            let (namespace, name) = resolver.resolve_attribute(attribute.key);
            let namespace = intern(&mut self.namespaces, namespace)?;
            let name = name.as_ref().to_owned();
            if element.attributes.iter().any(|known| known.namespace == namespace && known.name == name) {
                return Err(malformed("an attribute twice"));
            }
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(malformed)?.into_owned();
            check_characters(&value)?;
            element.attributes.push(Attribute { namespace, name, value });
        }
        Ok(element)
    }

    fn finish(&mut self, mut element: Element) -> Result<(), XmlError> {
        if !element.children.is_empty() && element.text.trim().is_empty() {
            element.text.clear();
        }
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None if self.root.is_none() => self.root = Some(element),
            None => return Err(malformed("a second root element")),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), XmlError> {
        match self.open.last_mut() {
            Some(element) => {
                check_characters(text)?;
                element.text.push_str(text);
                Ok(())
            }
            None if text.trim().is_empty() => Ok(()),
            None => Err(malformed("text outside of the root element")),
        }
    }
}

fn check_characters(text: &str) -> Result<(), XmlError> {
    if text.chars().all(is_xml_character) { Ok(()) } else { Err(malformed("a control character")) }
}

fn intern(known: &mut Vec<Arc<str>>, resolved: ResolveResult<'_>) -> Result<Arc<str>, XmlError> {
    let namespace = match &resolved {
        // The library leaves references in namespace names as they are.
        ResolveResult::Bound(namespace) => unescape(namespace.0).map_err(malformed)?,
        ResolveResult::Unbound => "".into(),
        ResolveResult::Unknown(_) => return Err(malformed("a prefix that is not declared")),
    };
    if let Some(found) = known.iter().find(|known| ***known == *namespace) {
        return Ok(found.clone());
    }
    let namespace: Arc<str> = (&*namespace).into();
    // A bound on the search; peers use a dozen.
    if known.len() < MAX_NAMESPACES {
        known.push(namespace.clone());
    }
    Ok(namespace)
}

fn malformed(cause: impl ToString) -> XmlError {
    XmlError::Malformed(cause.to_string().chars().take(200).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(xml: &str) -> String {
        Element::parse(xml.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn prefixes_do_not_matter_and_namespaces_do() {
        let element = |xml: &str| Element::parse(xml.as_bytes()).unwrap();
        let plain = element(r#"<a xmlns="urn:x"><b k="1">t &amp; &#x75;</b></a>"#);
        assert_eq!(
            plain,
            element(
                r#"<?xml version="1.0"?><x:a xmlns:x="urn:x"><!-- c --> <x:b k='1'>t <![CDATA[&]]> u</x:b></x:a>"#
            )
        );
        assert_ne!(plain, element(r#"<a xmlns="urn:y"><b k="1">t &amp; u</b></a>"#));
        let b = plain.find("urn:x", "b").unwrap();
        assert_eq!((b.text(), b.get_attribute("k"), b.get_attribute("l")), ("t & u", Some("1"), None));
        // A declaration inside shadows the one outside, and ends with its element.
        let shadow = element(r#"<p:a xmlns:p="urn:1"><p:b xmlns:p="urn:2"/><p:c/></p:a>"#);
        assert!(shadow.children()[0].is("urn:2", "b") && shadow.children()[1].is("urn:1", "c"));
    }

    #[test]
    fn what_no_peer_needs_is_refused() {
        let bomb = r#"<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;">]><a>&y;</a>"#;
        assert_eq!(refused(bomb), "XML with a document type is refused");
        assert_eq!(refused("<a>&x;</a>"), "XML with entities of its own is refused");
        assert!(refused(r#"<a b="&x;"/>"#).starts_with("not well-formed"));
        assert_eq!(refused(&"<a>".repeat(33)), "XML with elements nested deeper than 32 is refused");
        assert_eq!(
            refused(&format!("<a>{}</a>", "<b/>".repeat(10_000))),
            "XML with more than 10,000 elements is refused"
        );
        let attributes: String = (0..33).map(|n| format!(" k{n}=''")).collect();
        assert_eq!(
            refused(&format!("<a{attributes}/>")),
            "XML with more than 32 attributes on an element is refused"
        );
        assert_eq!(refused(&" ".repeat(MAX_BYTES + 1)), "XML with more than 256 kB is refused");
        assert_eq!(Element::parse(b"<a>\xFF</a>").unwrap_err(), XmlError::Refused("text that is not UTF-8"));
        for xml in [
            "",
            "text",
            "<a/><b/>",
            "<a/>t",
            "<a>",
            "<a></b>",
            "</a>",
            "<p:a/>",
            "<a p:k=''/>",
            "<a k='' k=''/>",
            "<a>&#0;</a>",
            "<a>&#1;</a>",
            "<a>&#xD800;</a>",
            "<a>\u{1}</a>",
            "<a>&</a>",
            "<a k=x/>",
        ] {
            assert!(refused(xml).starts_with("not well-formed XML"), "{xml:?}: {}", refused(xml));
        }
        let namespaces: String = (0..300).map(|n| format!(" xmlns:n{n}='urn:{n}'")).collect();
        assert!(Element::parse(format!("<a{namespaces}/>").as_bytes()).is_err());
    }

    /// A document at the limits is read in time proportional to its size.
    #[test]
    fn the_worst_that_is_allowed_is_still_quick() {
        let namespaces: String = (0..200).map(|n| format!(" xmlns:n{n}='urn:{n}'")).collect();
        let many = format!("<a{namespaces}>{}</a>", "<n0:b n1:k=''/>".repeat(9_999));
        let started = std::time::Instant::now();
        assert_eq!(Element::parse(many.as_bytes()).unwrap().children().len(), 9_999);
        let repeated = format!("<a{}/>", " xmlns='u'".repeat(25_000));
        let _ = Element::parse(repeated.as_bytes());
        let _ = Element::parse("<".repeat(MAX_BYTES).as_bytes());
        let _ = Element::parse("<a ".repeat(MAX_BYTES / 3).as_bytes());
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }

    /// Any tree that can be written.
    pub(crate) fn any_element() -> impl Strategy<Value = Element> {
        let name = "[a-zA-Z_][a-zA-Z0-9_.-]{0,8}";
        let namespace = prop_oneof![
            Just("".to_owned()),
            Just("urn:x".to_owned()),
            Just(crate::onvif::UPLINK_NS.to_owned()),
            "urn:[ -~]{1,10}"
        ];
        let text = "[\\t\\n\\r -~ä-ü€😀]{0,20}";
        let attributes = proptest::collection::btree_map(name, text, 0..4);
        let leaf = (namespace, name, attributes, text).prop_map(|(namespace, name, attributes, text)| {
            let mut element = Element::with_text(&namespace, &name, text);
            for (name, value) in attributes {
                element = element.attribute(&name, value);
            }
            element
        });
        leaf.prop_recursive(6, 40, 5, |inner| {
            (inner.clone(), proptest::collection::vec(inner, 1..5)).prop_map(|(mut parent, children)| {
                parent.text.clear();
                parent.with_children(children)
            })
        })
    }

    proptest! {
        // Each case reads every beginning of its document.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_is_read_back_and_no_part_of_it_is(element in any_element()) {
            let xml = element.to_xml();
            prop_assert_eq!(&Element::parse(xml.as_bytes()).unwrap(), &element, "{}", xml);
            for end in 0..xml.len() {
                prop_assert!(Element::parse(&xml.as_bytes()[..end]).is_err(), "cut at {}: {}", end, xml);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Element::parse(&bytes);
        }

        #[test]
        fn any_markup_is_read_or_refused(text in "(<|>|/|a|b| |k=|'|\"|xmlns:a=|&|;|#|x|!|\\[|CDATA|\\]|-|\\?|:|\t){0,60}") {
            if let Ok(element) = Element::parse(text.as_bytes()) {
                prop_assert_eq!(Element::parse(element.to_xml().as_bytes()).unwrap(), element);
            }
        }

        #[test]
        fn a_flipped_byte_does_no_harm(element in any_element(), at in any::<usize>(), to in any::<u8>()) {
            let mut xml = element.to_xml().into_bytes();
            let at = at % xml.len();
            xml[at] = to;
            let _ = Element::parse(&xml);
        }
    }
}
