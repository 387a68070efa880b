//! AWS's wire formats: the Query protocol's parameters (EC2, IAM, STS), XML
//! and JSON answers, and errors as each service writes them.

use crate::auth::Denied;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Display;

/// What a handler answers: the inside of the result element (Query protocol),
/// or the whole JSON document (KMS, Organizations).
pub type Reply = Result<String, ApiError>;

/// The services of the sandbox, and what differs between their protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Ec2,
    Iam,
    Sts,
    Kms,
    Organizations,
}

impl Service {
    /// The service for the name in a SigV4 credential scope.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "ec2" => Some(Self::Ec2),
            "iam" => Some(Self::Iam),
            "sts" => Some(Self::Sts),
            "kms" => Some(Self::Kms),
            "organizations" => Some(Self::Organizations),
            _ => None,
        }
    }

    /// The prefix of the service's IAM actions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Iam => "iam",
            Self::Sts => "sts",
            Self::Kms => "kms",
            Self::Organizations => "organizations",
        }
    }

    /// Whether it speaks JSON 1.1; the others speak the Query protocol.
    pub fn speaks_json(self) -> bool {
        matches!(self, Self::Kms | Self::Organizations)
    }

    /// The code of the error a throttled call gets.
    pub fn throttling_code(self) -> &'static str {
        match self {
            Self::Ec2 => "RequestLimitExceeded",
            Self::Iam | Self::Sts => "Throttling",
            Self::Kms => "ThrottlingException",
            Self::Organizations => "TooManyRequestsException",
        }
    }

    /// The error of a call that no policy allows.
    pub fn denied(self, denied: Denied) -> ApiError {
        let (status, code) = match self {
            Self::Ec2 => (403, "UnauthorizedOperation"),
            Self::Iam | Self::Sts => (403, "AccessDenied"),
            Self::Kms | Self::Organizations => (400, "AccessDeniedException"),
        };
        let mut error = ApiError::new(status, code, denied.message());
        error.denied = Some(Box::new(denied));
        error
    }
}

/// An error of the API, before it is written in the service's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// The code that SDKs match on, such as `InvalidAMIID.NotFound`.
    pub code: String,
    pub message: String,
    /// Which side refused, when the error is about permissions; for the journal.
    pub denied: Option<Box<Denied>>,
}

impl ApiError {
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), denied: None }
    }

    /// An error of status 400.
    pub fn bad_request(code: &str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    /// The error document in the format of `service`.
    pub fn render(&self, service: Service, request_id: &str) -> String {
        let code = escape(&self.code);
        let message = escape(&self.message);
        match service {
            Service::Ec2 => format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code>\
                 <Message>{message}</Message></Error></Errors><RequestID>{request_id}</RequestID></Response>"
            ),
            Service::Iam | Service::Sts => {
                let kind = if self.status < 500 { "Sender" } else { "Receiver" };
                format!(
                    "<ErrorResponse xmlns=\"{}\"><Error><Type>{kind}</Type><Code>{code}</Code>\
                     <Message>{message}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>",
                    namespace(service)
                )
            }
            Service::Kms | Service::Organizations => {
                serde_json::json!({ "__type": self.code, "message": self.message }).to_string()
            }
        }
    }
}

/// The answer document around what a handler returned.
pub fn render(service: Service, action: &str, body: &str, request_id: &str) -> String {
    match service {
        Service::Ec2 => format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response xmlns=\"{}\">\
             <requestId>{request_id}</requestId>{body}</{action}Response>",
            namespace(service)
        ),
        Service::Iam | Service::Sts => format!(
            "<{action}Response xmlns=\"{}\"><{action}Result>{body}</{action}Result>\
             <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>",
            namespace(service)
        ),
        Service::Kms | Service::Organizations => body.to_owned(),
    }
}

fn namespace(service: Service) -> &'static str {
    match service {
        Service::Ec2 => "http://ec2.amazonaws.com/doc/2016-11-15/",
        Service::Iam => "https://iam.amazonaws.com/doc/2010-05-08/",
        Service::Sts => "https://sts.amazonaws.com/doc/2011-06-15/",
        Service::Kms | Service::Organizations => "",
    }
}

/// The parameters of a Query-protocol call: `Name=value` pairs, lists as
/// `Name.1=…`, structures as `Name.1.Field=…`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    values: BTreeMap<String, String>,
}

impl Params {
    /// Parameters from a URL-encoded form or query string.
    pub fn parse(form: &[u8]) -> Self {
        let values =
            form_urlencoded::parse(form).map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        Self { values }
    }

    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let values = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { values }
    }

    /// All but the names of the call and of the API's version.
    pub fn to_json(&self) -> Value {
        let named = self.values.iter().filter(|(name, _)| !matches!(name.as_str(), "Action" | "Version"));
        named.map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The value of `name`, or EC2's and IAM's error for a missing one.
    pub fn require(&self, name: &str) -> Result<&str, ApiError> {
        self.get(name).ok_or_else(|| {
            ApiError::bad_request("MissingParameter", format!("The request must contain the parameter {name}"))
        })
    }

    /// `true` or `false`, if given.
    pub fn bool(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| value.eq_ignore_ascii_case("true"))
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(|value| value.parse().ok())
    }

    /// The items of `Name.1`, `Name.2`, … in the order of their numbers. IAM's
    /// `Name.member.1` is understood too.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.numbered(name).into_iter().filter_map(|prefix| self.values.get(&prefix).cloned()).collect()
    }

    /// The structures of `Name.1.Field`, `Name.2.Field`, … in the order of
    /// their numbers, each with the prefix taken off its fields' names.
    pub fn structs(&self, name: &str) -> Vec<Self> {
        self.numbered(name).into_iter().map(|prefix| self.sub(&prefix)).collect()
    }

    /// The fields of the structure `name`: `Name.Field=x` becomes `Field=x`.
    pub fn sub(&self, name: &str) -> Self {
        let prefix = format!("{name}.");
        let values = self
            .values
            .range(prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&prefix))
            .map(|(key, value)| (key[prefix.len()..].to_owned(), value.clone()))
            .collect();
        Self { values }
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The prefixes `Name.1`, `Name.2`, … that occur, in numeric order.
    fn numbered(&self, name: &str) -> Vec<String> {
        let mut found = BTreeMap::new();
        for base in [format!("{name}."), format!("{name}.member.")] {
            for (key, _) in self.values.range(base.clone()..).take_while(|(key, _)| key.starts_with(&base)) {
                let number = key[base.len()..].split('.').next().unwrap_or_default();
                if let Ok(index) = number.parse::<u32>() {
                    found.insert(index, format!("{base}{number}"));
                }
            }
        }
        found.into_values().collect()
    }
}

/// Writes XML elements one after another, with the text escaped.
#[derive(Debug, Default, Clone)]
pub struct Xml {
    text: String,
}

impl Xml {
    pub fn new() -> Self {
        Self::default()
    }

    /// `<name>value</name>`
    pub fn elem(&mut self, name: &str, value: impl Display) -> &mut Self {
        let value = escape(&value.to_string());
        self.text.push_str(&format!("<{name}>{value}</{name}>"));
        self
    }

    /// `<name>value</name>`, or nothing for `None`.
    pub fn opt(&mut self, name: &str, value: Option<impl Display>) -> &mut Self {
        if let Some(value) = value {
            self.elem(name, value);
        }
        self
    }

    /// `<name>…</name>` around what `inside` writes.
    pub fn nest(&mut self, name: &str, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.text.push_str(&format!("<{name}>"));
        inside(self);
        self.text.push_str(&format!("</{name}>"));
        self
    }

    /// `<name><item>…</item>…</name>`, EC2's form of a list.
    pub fn items<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        write: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.list(name, "item", items, write)
    }

    /// `<name><member>…</member>…</name>`, IAM's form of a list.
    pub fn members<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        write: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.list(name, "member", items, write)
    }

    fn list<T>(
        &mut self,
        name: &str,
        item_name: &str,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.nest(name, |xml| {
            for item in items {
                xml.nest(item_name, |xml| write(xml, item));
            }
        })
    }

    /// Text inside the element that is open, escaped.
    pub fn text(&mut self, value: impl Display) -> &mut Self {
        self.text.push_str(&escape(&value.to_string()));
        self
    }

    pub fn finish(self) -> String {
        self.text
    }
}

/// `value` with XML's special characters escaped.
pub fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\r' => escaped.push_str("&#13;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_numeric_order() {
        let params = Params::parse(b"Id.2=b&Id.10=c&Id.1=a&Idle=x");
        assert_eq!(params.list("Id"), ["a", "b", "c"]);
    }

    #[test]
    fn member_lists_are_understood() {
        let params = Params::parse(b"ActionNames.member.1=a&ActionNames.member.2=b");
        assert_eq!(params.list("ActionNames"), ["a", "b"]);
    }

    #[test]
    fn structures_lose_their_prefix() {
        let params = Params::parse(b"Filter.1.Name=n&Filter.1.Value.1=v&Filter.2.Name=m");
        let filters = params.structs("Filter");
        assert_eq!(filters.len(), 2);
        assert_eq!(filters[0].get("Name"), Some("n"));
        assert_eq!(filters[0].list("Value"), ["v"]);
        assert_eq!(filters[1].get("Name"), Some("m"));
    }

    #[test]
    fn text_is_escaped() {
        let mut xml = Xml::new();
        xml.elem("a", "<&>");
        assert_eq!(xml.finish(), "<a>&lt;&amp;&gt;</a>");
    }
}
