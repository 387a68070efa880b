//! CloudFormation templates, read as JSON with every intrinsic function in its long form.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};
use serde_yaml_ng::Value as Yaml;

use crate::Result;

/// Reads a template: `!Ref x` becomes `{"Ref": "x"}`, `!GetAtt a.b` `{"Fn::GetAtt": ["a", "b"]}`,
/// `!Sub x` `{"Fn::Sub": "x"}`.
pub fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let yaml: Yaml = serde_yaml_ng::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    long_form(&yaml)
}

/// The logical ids of `template`'s resources of type `kind`, each with its properties.
pub fn resources<'a>(template: &'a Value, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    template["Resources"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(move |(_, resource)| resource["Type"] == kind)
        .map(|(id, resource)| (id.as_str(), resource))
}

fn long_form(yaml: &Yaml) -> Result<Value> {
    Ok(match yaml {
        Yaml::Mapping(mapping) => {
            let mut object = Map::new();
            for (key, value) in mapping {
                let key = key.as_str().ok_or_else(|| format!("the key {key:?} is not a string"))?;
                object.insert(key.to_owned(), long_form(value)?);
            }
            Value::Object(object)
        }
        Yaml::Sequence(items) => items.iter().map(long_form).collect::<Result<_>>()?,
        Yaml::Tagged(tagged) => {
            let name = tagged.tag.to_string();
            let argument = long_form(&tagged.value)?;
            match (name.trim_start_matches('!'), argument.as_str().and_then(|text| text.split_once('.'))) {
                ("GetAtt", Some((resource, attribute))) => json!({ "Fn::GetAtt": [resource, attribute] }),
                (name @ ("Ref" | "Condition"), _) => json!({ name: argument }),
                (name, _) => json!({ format!("Fn::{name}"): argument }),
            }
        }
        scalar => serde_json::to_value(scalar)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_are_written_out() {
        let yaml = serde_yaml_ng::from_str(
            "{a: !Ref x, b: !GetAtt f.Arn, c: !Sub 's ${x}', d: [!If [c, 1, !Ref 'AWS::NoValue']]}",
        );
        let expected = json!({
            "a": { "Ref": "x" },
            "b": { "Fn::GetAtt": ["f", "Arn"] },
            "c": { "Fn::Sub": "s ${x}" },
            "d": [{ "Fn::If": ["c", 1, { "Ref": "AWS::NoValue" }] }],
        });
        assert_eq!(long_form(&yaml.unwrap()).unwrap(), expected);
    }
}
