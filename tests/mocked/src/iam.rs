//! Answers of IAM.

/// The answer of ListEntitiesForPolicy: whom the policy is attached to.
pub fn entities(roles: &[String], users: &[String]) -> String {
    let members = |kind: &str, names: &[String]| {
        let members = names.iter().map(|name| format!("<member><{kind}Name>{name}</{kind}Name></member>"));
        format!("<Policy{kind}s>{}</Policy{kind}s>", members.collect::<String>())
    };
    format!(
        "<ListEntitiesForPolicyResponse><ListEntitiesForPolicyResult>{}{}<IsTruncated>false</IsTruncated>\
         </ListEntitiesForPolicyResult></ListEntitiesForPolicyResponse>",
        members("Role", roles),
        members("User", users)
    )
}
