//! A DynamoDB table with the keys `id` and `part` and an index by `imageId`, as far as it is used: conditions and
//! updates are evaluated, and what is not known of them is an error.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// An item or a part of one, in DynamoDB's JSON: each value in an object that names its type.
pub type Item = Map<String, Value>;

#[derive(Debug, Default, Clone)]
pub struct Table {
    items: BTreeMap<(String, String), Item>,
}

/// An error of DynamoDB's, with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub name: &'static str,
    pub message: String,
}

fn invalid(message: impl Into<String>) -> Refused {
    Refused { name: "ValidationException", message: message.into() }
}

impl Table {
    /// All items, in the order of their keys.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    /// Puts an item as somebody who may do anything.
    ///
    /// # Panics
    /// Where it is no item: a test that puts one has made it.
    pub fn put(&mut self, item: &Value) {
        self.put_item(&json!({ "Item": item })).unwrap_or_else(|refused| panic!("{refused:?}"));
    }

    /// Removes an item that has this key, as somebody who may do anything.
    pub fn remove(&mut self, id: &str, part: &str) {
        self.items.remove(&(id.to_owned(), part.to_owned()));
    }

    /// What a client calls.
    ///
    /// # Errors
    /// What DynamoDB refuses, and what is not known here.
    pub fn call(&mut self, operation: &str, arguments: &Value) -> Result<Value, Refused> {
        match operation {
            "Query" => self.query(arguments),
            "Scan" => self.scan(arguments),
            "GetItem" => self.get_item(arguments),
            "PutItem" => self.put_item(arguments),
            "UpdateItem" => self.update_item(arguments),
            "DeleteItem" => self.delete_item(arguments),
            _ => Err(Refused { name: "UnknownOperationException", message: format!("{operation} is not known here") }),
        }
    }

    pub fn put_item(&mut self, arguments: &Value) -> Result<Value, Refused> {
        let known =
            ["TableName", "Item", "ConditionExpression", "ExpressionAttributeNames", "ExpressionAttributeValues"];
        let given = fields(arguments, &known)?;
        let item = given["Item"].as_object().cloned().ok_or_else(|| invalid("Item is not an object"))?;
        let key = key_of(&item)?;
        self.check(&key, arguments)?;
        self.items.insert(key, item);
        Ok(json!({}))
    }

    pub fn get_item(&self, arguments: &Value) -> Result<Value, Refused> {
        let given = fields(arguments, &["TableName", "Key", "ConsistentRead"])?;
        let key = given["Key"].as_object().cloned().unwrap_or_default();
        Ok(match self.items.get(&key_of(&key)?) {
            Some(item) => json!({ "Item": item }),
            None => json!({}),
        })
    }

    pub fn delete_item(&mut self, arguments: &Value) -> Result<Value, Refused> {
        let known =
            ["TableName", "Key", "ConditionExpression", "ExpressionAttributeNames", "ExpressionAttributeValues"];
        let given = fields(arguments, &known)?;
        let key = key_of(&given["Key"].as_object().cloned().unwrap_or_default())?;
        self.check(&key, arguments)?;
        self.items.remove(&key);
        Ok(json!({}))
    }

    pub fn update_item(&mut self, arguments: &Value) -> Result<Value, Refused> {
        let known = [
            "TableName",
            "Key",
            "ConditionExpression",
            "UpdateExpression",
            "ExpressionAttributeNames",
            "ExpressionAttributeValues",
            "ReturnValues",
        ];
        let given = fields(arguments, &known)?;
        let key_item = given["Key"].as_object().cloned().unwrap_or_default();
        let key = key_of(&key_item)?;
        self.check(&key, arguments)?;
        let mut item = self.items.get(&key).cloned().unwrap_or(key_item);
        let update = given.get("UpdateExpression").and_then(Value::as_str).ok_or_else(|| invalid("no update"))?;
        Expression::of(update, arguments)?.update(&mut item)?;
        self.items.insert(key, item.clone());
        match given.get("ReturnValues").and_then(Value::as_str) {
            Some("ALL_NEW") => Ok(json!({ "Attributes": item })),
            None | Some("NONE") => Ok(json!({})),
            Some(other) => Err(invalid(format!("ReturnValues {other} is not known here"))),
        }
    }

    /// By `id`, or by `imageId` in the index `ByImage`, which has the keys only.
    fn query(&self, arguments: &Value) -> Result<Value, Refused> {
        let known = [
            "TableName",
            "IndexName",
            "KeyConditionExpression",
            "ExpressionAttributeNames",
            "ExpressionAttributeValues",
            "ConsistentRead",
        ];
        let given = fields(arguments, &known)?;
        let condition = given.get("KeyConditionExpression").and_then(Value::as_str).unwrap_or_default();
        let (key, by_image) = match given.get("IndexName").and_then(Value::as_str) {
            None => ("id", false),
            Some("ByImage") => ("imageId", true),
            Some(other) => return Err(invalid(format!("the index {other} is not known"))),
        };
        if !condition.trim_start().starts_with(key) {
            return Err(invalid(format!("{condition} does not start with {key}")));
        }
        let mut found = Vec::new();
        for item in self.items.values().filter(|item| item.contains_key(key)) {
            if Expression::of(condition, arguments)?.holds_whole(item)? {
                found.push(if by_image { keys_of(item) } else { item.clone() });
            }
        }
        Ok(json!({ "Count": found.len(), "ScannedCount": found.len(), "Items": found }))
    }

    /// Of the index `ByImage`, which has the keys only.
    fn scan(&self, arguments: &Value) -> Result<Value, Refused> {
        let given = fields(arguments, &["TableName", "IndexName"])?;
        if given.get("IndexName").and_then(Value::as_str) != Some("ByImage") {
            return Err(invalid("only the index ByImage is scanned"));
        }
        let of_an_image = self.items.values().filter(|item| item.contains_key("imageId"));
        let found: Vec<Item> = of_an_image.map(keys_of).collect();
        Ok(json!({ "Count": found.len(), "ScannedCount": found.len(), "Items": found }))
    }

    fn check(&self, key: &(String, String), arguments: &Value) -> Result<(), Refused> {
        let Some(condition) = arguments.get("ConditionExpression").and_then(Value::as_str) else { return Ok(()) };
        let nothing = Item::new();
        let item = self.items.get(key).unwrap_or(&nothing);
        if Expression::of(condition, arguments)?.holds_whole(item)? {
            return Ok(());
        }
        Err(Refused { name: "ConditionalCheckFailedException", message: "The conditional request failed".to_owned() })
    }
}

/// The partition key of the item, or of the items, that a call is about: what `dynamodb:LeadingKeys` says of it ("Using
/// IAM policy conditions for fine-grained access control", DynamoDB developer guide). A query of an index names the
/// index's.
pub fn leading_key(arguments: &Value) -> Option<String> {
    let item = [&arguments["Key"], &arguments["Item"]].into_iter().find_map(Value::as_object);
    let key = match item {
        Some(item) => item.get("id"),
        None => {
            let condition = arguments["KeyConditionExpression"].as_str()?;
            let (_, value) = condition.split_once('=')?;
            arguments["ExpressionAttributeValues"].get(value.split_whitespace().next()?)
        }
    };
    Some(key?["S"].as_str()?.to_owned())
}

fn fields<'a>(arguments: &'a Value, known: &[&str]) -> Result<&'a Map<String, Value>, Refused> {
    let given = arguments.as_object().ok_or_else(|| invalid("the arguments are not an object"))?;
    match given.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(invalid(format!("{name} is not known here"))),
        None => Ok(given),
    }
}

/// What the index `ByImage` has of an item.
fn keys_of(item: &Item) -> Item {
    let keys = ["imageId", "id", "part"].map(|name| (name.to_owned(), item.get(name).cloned().unwrap_or_default()));
    keys.into_iter().collect()
}

fn key_of(item: &Item) -> Result<(String, String), Refused> {
    let part = |name: &str| {
        let text = item.get(name).and_then(|value| value["S"].as_str());
        text.filter(|text| !text.is_empty())
            .map(str::to_owned)
            .ok_or_else(|| invalid(format!("{name} must be a string")))
    };
    Ok((part("id")?, part("part")?))
}

/// A condition or an update, as a list of words that is read from the left.
struct Expression<'a> {
    words: Vec<String>,
    at: usize,
    arguments: &'a Value,
}

impl<'a> Expression<'a> {
    fn of(text: &str, arguments: &'a Value) -> Result<Self, Refused> {
        let mut words: Vec<String> = Vec::new();
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_ascii_alphanumeric() || "_:#.".contains(c);
            let length = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else if ["<>", "<=", ">="].iter().any(|operator| rest.starts_with(operator)) {
                2
            } else if "()=<>,".contains(first) {
                1
            } else {
                return Err(invalid(format!("{rest} cannot be read")));
            };
            words.push(rest[..length].to_owned());
            rest = rest[length..].trim_start();
        }
        Ok(Self { words, at: 0, arguments })
    }

    fn peek(&self) -> &str {
        self.words.get(self.at).map_or("", String::as_str)
    }

    fn take(&mut self) -> String {
        self.at += 1;
        self.words.get(self.at - 1).cloned().unwrap_or_default()
    }

    fn take_if(&mut self, word: &str) -> bool {
        let found = self.peek().eq_ignore_ascii_case(word);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, word: &str) -> Result<(), Refused> {
        if self.take_if(word) { Ok(()) } else { Err(invalid(format!("{word} is missing before {:?}", self.peek()))) }
    }

    fn holds_whole(&mut self, item: &Item) -> Result<bool, Refused> {
        let holds = self.any(item)?;
        if self.at < self.words.len() {
            return Err(invalid(format!("{:?} is not known here", self.peek())));
        }
        Ok(holds)
    }

    fn any(&mut self, item: &Item) -> Result<bool, Refused> {
        let mut holds = self.all(item)?;
        while self.take_if("OR") {
            holds |= self.all(item)?;
        }
        Ok(holds)
    }

    fn all(&mut self, item: &Item) -> Result<bool, Refused> {
        let mut holds = self.one(item)?;
        while self.take_if("AND") {
            holds &= self.one(item)?;
        }
        Ok(holds)
    }

    fn one(&mut self, item: &Item) -> Result<bool, Refused> {
        if self.take_if("NOT") {
            return Ok(!self.one(item)?);
        }
        if self.take_if("(") {
            let holds = self.any(item)?;
            self.expect(")")?;
            return Ok(holds);
        }
        let function = self.peek().to_owned();
        if ["attribute_exists", "attribute_not_exists", "begins_with"].contains(&function.as_str()) {
            self.take();
            self.expect("(")?;
            let first = self.operand(item)?;
            let holds = match function.as_str() {
                "attribute_exists" => first.is_some(),
                "attribute_not_exists" => first.is_none(),
                _ => {
                    self.expect(",")?;
                    let prefix = self.operand(item)?;
                    let text = |value: &Option<Value>| value.as_ref().and_then(|v| v["S"].as_str().map(str::to_owned));
                    text(&first).zip(text(&prefix)).is_some_and(|(text, prefix)| text.starts_with(&prefix))
                }
            };
            self.expect(")")?;
            return Ok(holds);
        }
        let left = self.operand(item)?;
        let operator = self.take();
        let right = self.operand(item)?;
        // A comparison with what is not there does not hold, but for `<>`.
        let order = match (&left, &right) {
            (Some(left), Some(right)) => compare(left, right),
            _ => None,
        };
        Ok(match operator.as_str() {
            "=" => order.is_some_and(std::cmp::Ordering::is_eq),
            "<>" => !order.is_some_and(std::cmp::Ordering::is_eq),
            "<" => order.is_some_and(std::cmp::Ordering::is_lt),
            "<=" => order.is_some_and(std::cmp::Ordering::is_le),
            ">" => order.is_some_and(std::cmp::Ordering::is_gt),
            ">=" => order.is_some_and(std::cmp::Ordering::is_ge),
            other => return Err(invalid(format!("the operator {other:?} is not known here"))),
        })
    }

    /// A value of the arguments, or the item's attribute of that name.
    fn operand(&mut self, item: &Item) -> Result<Option<Value>, Refused> {
        let word = self.take();
        if word.starts_with(':') {
            let value = self.arguments["ExpressionAttributeValues"].get(&word).cloned();
            return value.map(Some).ok_or_else(|| invalid(format!("{word} has no value")));
        }
        Ok(item.get(&self.attribute(&word)?).cloned())
    }

    fn attribute(&self, word: &str) -> Result<String, Refused> {
        let name = match word.strip_prefix('#') {
            Some(_) => self.arguments["ExpressionAttributeNames"].get(word).and_then(Value::as_str).unwrap_or_default(),
            None => word,
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(invalid(format!("{word:?} is not the name of an attribute")));
        }
        Ok(name.to_owned())
    }

    fn update(&mut self, item: &mut Item) -> Result<(), Refused> {
        let before = item.clone();
        while self.at < self.words.len() {
            let clause = self.take().to_ascii_uppercase();
            loop {
                let word = self.take();
                let name = self.attribute(&word)?;
                match clause.as_str() {
                    "SET" => {
                        self.expect("=")?;
                        let value = self.new_value(&before)?.ok_or_else(|| invalid(format!("{name} gets nothing")))?;
                        item.insert(name, value);
                    }
                    "REMOVE" => {
                        item.shift_remove(&name);
                    }
                    other => return Err(invalid(format!("{other} is not known here"))),
                }
                if !self.take_if(",") {
                    break;
                }
            }
        }
        Ok(())
    }

    fn new_value(&mut self, before: &Item) -> Result<Option<Value>, Refused> {
        if !self.take_if("if_not_exists") {
            return self.operand(before);
        }
        self.expect("(")?;
        let there = self.operand(before)?;
        self.expect(",")?;
        let otherwise = self.operand(before)?;
        self.expect(")")?;
        Ok(there.or(otherwise))
    }
}

fn compare(left: &Value, right: &Value) -> Option<std::cmp::Ordering> {
    let number = |value: &Value| value["N"].as_str().and_then(|text| text.parse::<f64>().ok());
    match (number(left), number(right)) {
        (Some(left), Some(right)) => left.partial_cmp(&right),
        (None, None) => match (left["S"].as_str(), right["S"].as_str()) {
            (Some(left), Some(right)) => Some(left.cmp(right)),
            _ => (left == right).then_some(std::cmp::Ordering::Equal),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(me: &str, now: u64) -> Value {
        json!({
            "TableName": "t",
            "Key": { "id": { "S": "keys" }, "part": { "S": "lock" } },
            "ConditionExpression": "attribute_not_exists(heldBy) OR heldBy = :me OR heldUntil < :now",
            "UpdateExpression": "SET heldBy = :me, heldUntil = :until",
            "ExpressionAttributeValues": {
                ":me": { "S": me }, ":now": { "N": now.to_string() }, ":until": { "N": (now + 900).to_string() },
            },
            "ReturnValues": "ALL_NEW",
        })
    }

    #[test]
    fn a_lock_is_one_holders_until_it_is_given_back_or_its_time_is_over() {
        let mut table = Table::default();
        assert_eq!(table.update_item(&lock("a", 1_000)).unwrap()["Attributes"]["heldBy"]["S"], "a");
        assert!(table.update_item(&lock("a", 1_001)).is_ok());
        assert_eq!(table.update_item(&lock("b", 1_002)).unwrap_err().name, "ConditionalCheckFailedException");
        assert!(table.update_item(&lock("b", 1_902)).is_ok());
        let mut unlock = lock("b", 2_000);
        unlock["ConditionExpression"] = json!("heldBy = :me");
        unlock["UpdateExpression"] = json!("SET note = :me REMOVE heldBy, heldUntil");
        assert_eq!(table.update_item(&unlock).unwrap()["Attributes"]["note"]["S"], "b");
        assert_eq!(table.update_item(&unlock).unwrap_err().name, "ConditionalCheckFailedException");
    }

    #[test]
    fn a_call_is_about_the_partition_key_of_its_items() {
        let query = |condition: &str| json!({ "KeyConditionExpression": condition, "ExpressionAttributeValues": { ":v": { "S": "keys#1" } } });
        for arguments in [
            lock("a", 1),
            json!({ "Item": { "part": { "S": "lock" }, "id": { "S": "keys" } } }),
            query("id = :v AND begins_with(part, :p)"),
            query("imageId=:v"),
        ] {
            assert!(leading_key(&arguments).is_some_and(|key| key.starts_with("keys")), "{arguments}");
        }
        assert_eq!(leading_key(&json!({ "TableName": "t" })), None, "a scan is about all of them");
    }

    #[test]
    fn items_are_found_by_target_and_by_image() {
        let mut table = Table::default();
        for (id, part, image) in
            [("target#2", "ami-1#a", "ami-1"), ("target#2", "ami-2#a", "ami-2"), ("target#3", "ami-1#b", "ami-1")]
        {
            let item =
                json!({ "id": { "S": id }, "part": { "S": part }, "imageId": { "S": image }, "gift": { "S": "{}" } });
            table.put_item(&json!({ "TableName": "t", "Item": item })).unwrap();
        }
        let query = |condition: &str, index: Option<&str>, value: &str| {
            let mut arguments = json!({ "KeyConditionExpression": condition,
                "ExpressionAttributeValues": { ":v": { "S": value }, ":p": { "S": "ami-1#" } } });
            if let Some(index) = index {
                arguments["IndexName"] = json!(index);
            }
            table.query(&arguments).unwrap()["Items"].as_array().unwrap().clone()
        };
        assert_eq!(query("id = :v", None, "target#2").len(), 2);
        let one = query("id = :v AND begins_with(part, :p)", None, "target#2");
        assert_eq!((one.len(), one[0]["gift"]["S"].as_str()), (1, Some("{}")));
        let keys = query("imageId = :v", Some("ByImage"), "ami-1");
        assert_eq!((keys.len(), keys[0].get("gift")), (2, None));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let mut table = Table::default();
        for (field, value) in [
            ("ConditionExpression", json!("size(heldBy) > :now")),
            ("ConditionExpression", json!("heldBy BETWEEN :me AND :me")),
            ("UpdateExpression", json!("ADD heldBy :me")),
            ("UpdateExpression", json!("SET heldBy = :nobody")),
            ("ReturnConsumedCapacity", json!("TOTAL")),
        ] {
            let mut arguments = lock("a", 1);
            arguments[field] = value;
            assert_eq!(table.update_item(&arguments).unwrap_err().name, "ValidationException", "{arguments}");
        }
    }
}
