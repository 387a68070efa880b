//! Calls as somebody else: an account's root, a role or a user of it; at once, without a function.

use ami_share_sandbox::{World, http::Request, sts};
use serde_json::Value;

use crate::REGION;

/// Whose calls they are.
#[derive(Debug, Clone)]
pub struct Caller {
    access_key: String,
    token: Option<String>,
    region: String,
}

impl Caller {
    pub fn root(account: &str) -> Self {
        Self { access_key: account.to_owned(), token: None, region: REGION.to_owned() }
    }

    /// In another Region than that of the hub.
    pub fn in_region(self, region: &str) -> Self {
        Self { region: region.to_owned(), ..self }
    }

    /// A role that nobody has to let assume it.
    ///
    /// # Errors
    /// Where there is none.
    pub fn role(world: &mut World, arn: &str) -> Result<Self, String> {
        let key = sts::issue_session(world, arn, "somebody").ok_or_else(|| format!("there is no role {arn}"))?;
        Ok(Self { access_key: key.id, token: key.token, region: REGION.to_owned() })
    }

    /// # Errors
    /// Where there is none.
    pub fn user(world: &mut World, arn: &str) -> Result<Self, String> {
        let account = arn.split(':').nth(4).unwrap_or_default();
        let name = arn.rsplit('/').next().unwrap_or_default();
        let key = Self::root(account).call(world, "iam", "CreateAccessKey", &[("UserName", name)])?;
        let access_key = element(&key, "AccessKeyId").unwrap_or_default();
        Ok(Self { access_key, token: None, region: REGION.to_owned() })
    }

    /// A session of a role that this caller assumes, without a session policy.
    ///
    /// # Errors
    /// The answer, where it is an error.
    pub fn assume(&self, world: &mut World, role: &str, external_id: &str) -> Result<Self, String> {
        let parameters = [("RoleArn", role), ("RoleSessionName", "somebody"), ("ExternalId", external_id)];
        let session = self.call(world, "sts", "AssumeRole", &parameters)?;
        let access_key = element(&session, "AccessKeyId").unwrap_or_default();
        Ok(Self { access_key, token: element(&session, "SessionToken"), region: self.region.clone() })
    }

    /// A call of EC2, IAM or STS, by the names that parameters have on the wire; returns the answer's XML.
    ///
    /// # Errors
    /// The answer, where it is an error.
    pub fn call(
        &self,
        world: &mut World,
        service: &str,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> Result<String, String> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", action).extend_pairs(parameters);
        self.send(world, service, Request { body: form.finish().into_bytes(), ..self.request(service) })
    }

    /// A call of KMS; returns the answer.
    ///
    /// # Errors
    /// The answer, where it is an error.
    pub fn call_kms(&self, world: &mut World, action: &str, parameters: &Value) -> Result<Value, String> {
        let mut request = Request { body: parameters.to_string().into_bytes(), ..self.request("kms") };
        request.headers.insert("x-amz-target".to_owned(), format!("TrentService.{action}"));
        let answer = self.send(world, "kms", request)?;
        if answer.is_empty() {
            Ok(Value::Null)
        } else {
            serde_json::from_str(&answer).map_err(|error| error.to_string())
        }
    }

    fn request(&self, service: &str) -> Request {
        let Self { access_key, region, .. } = self;
        let scope = format!("AWS4-HMAC-SHA256 Credential={access_key}/20260101/{region}/{service}/aws4_request");
        let token = self.token.iter().map(|token| ("x-amz-security-token".to_owned(), token.clone()));
        Request {
            method: "POST".to_owned(),
            path: "/".to_owned(),
            headers: [("authorization".to_owned(), scope)].into_iter().chain(token).collect(),
            ..Request::default()
        }
    }

    fn send(&self, world: &mut World, service: &str, request: Request) -> Result<String, String> {
        match ami_share_sandbox::respond_at_once(world, &request) {
            Some(response) if response.status == 200 => Ok(response.body),
            Some(response) => Err(response.body),
            None => Err(format!("{service} did not answer")),
        }
    }
}

/// The text of the first element of that name.
pub fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
}
