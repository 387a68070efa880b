//! What uses an image that is to be revoked.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, ImageId},
    share::SourceImage,
};

/// Who uses the images that are to be revoked, as far as it has been asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Usage {
    /// The targets of all images, each once.
    pub targets: Vec<AccountId>,
    /// Who was asked about which image.
    pub images: Vec<AskedImage>,
    /// The first [`Usage::LISTED`] of them.
    pub uses: Vec<Use>,
    /// How many more uses there are than are listed.
    pub unlisted: usize,
}

/// The targets of one image, by their places in [`Usage::targets`]: states have no room for all their names once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AskedImage {
    /// It may be gone.
    pub image: SourceImage,
    /// Targets that answered.
    pub answered: Vec<usize>,
    /// Targets that could not be asked.
    pub unasked: Vec<usize>,
}

impl Usage {
    /// The most uses that are named.
    pub const LISTED: usize = 200;

    /// As many as there is room for; the rest are counted.
    pub fn add(&mut self, uses: Vec<Use>) {
        let room = Self::LISTED.saturating_sub(self.uses.len());
        self.unlisted += uses.len().saturating_sub(room);
        self.uses.extend(uses.into_iter().take(room));
    }

    /// Adds a target of the image that answered, or could not be asked.
    pub fn add_account(&mut self, image: &SourceImage, account: &AccountId, answered: bool) {
        let place = self.targets.iter().position(|target| target == account).unwrap_or_else(|| {
            self.targets.push(account.clone());
            self.targets.len() - 1
        });
        let asked = self.images.iter().position(|asked| asked.image == *image).unwrap_or_else(|| {
            self.images.push(AskedImage { image: image.clone(), answered: vec![], unasked: vec![] });
            self.images.len() - 1
        });
        let AskedImage { answered: yes, unasked: no, .. } = &mut self.images[asked];
        let places = if answered { yes } else { no };
        if !places.contains(&place) {
            places.push(place);
        }
    }

    /// Adds what EC2's report on an image says, as far as it is about the image's targets. For instances, what a target
    /// itself says counts: the report may lack the last 24 hours, and counts instances for some time after they were
    /// terminated, the proofs of ami-share among them. It counts for targets that could not be asked; for launch
    /// templates, of which it looks at more versions than the latest and the default one; and for recipes, which no
    /// target is asked about.
    pub fn add_reported(&mut self, image: &SourceImage, reported: Vec<Use>) {
        let Some(asked) = self.images.iter().find(|asked| asked.image == *image) else { return };
        let among = |places: &[usize], account: &AccountId| places.iter().any(|place| self.targets[*place] == *account);
        let counts = |used: &Use| {
            let account = &used.account_id;
            let answered = among(&asked.answered, account) && used.resource != UsingResource::Instance;
            answered || among(&asked.unasked, account)
        };
        // The target has named it already, by its id.
        let named = |used: &Use| {
            let same = |said: &Use| {
                said.account_id == used.account_id && said.image_id == used.image_id && said.resource == used.resource
            };
            self.uses.iter().any(same)
        };
        let more = reported.into_iter().filter(|used| counts(used) && !named(used)).collect();
        self.add(more);
    }
}

/// Resources of one kind in one account that use an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Use {
    /// The target that has them.
    pub account_id: AccountId,
    /// The image, or a copy of it that is to go.
    pub image_id: ImageId,
    /// All of one kind.
    pub resource: UsingResource,
    /// How many there are, named or not.
    pub count: u64,
    /// Some of them; none where only EC2's usage report names them.
    pub ids: Vec<String>,
}

/// What an image can be used by: all that EC2's usage reports know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UsingResource {
    /// Launched from it, and not terminated.
    Instance,
    /// With it in one of the versions that are looked at.
    LaunchTemplate,
    /// Image Builder's, for images that build on it.
    ImageRecipe,
    /// Image Builder's, for containers that are built on an instance of it.
    ContainerRecipe,
}

impl UsingResource {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Instance, Self::LaunchTemplate, Self::ImageRecipe, Self::ContainerRecipe];

    /// Those that EC2 has known from the beginning; not every Region's EC2 may know the others.
    pub const OF_EC2: [Self; 2] = [Self::Instance, Self::LaunchTemplate];

    /// As EC2's usage reports name it ("ImageUsageResourceTypeRequest", EC2 API reference).
    pub fn name(self) -> &'static str {
        match self {
            Self::Instance => "ec2:Instance",
            Self::LaunchTemplate => "ec2:LaunchTemplate",
            Self::ImageRecipe => "imagebuilder:ImageRecipe",
            Self::ContainerRecipe => "imagebuilder:ContainerRecipe",
        }
    }

    /// The kind that EC2 calls so; nothing for others.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.name() == name)
    }
}

impl Use {
    /// The most ids that are named.
    pub const IDS: usize = 5;
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let resource = match self.resource {
            UsingResource::Instance => "instance",
            UsingResource::LaunchTemplate => "launch template",
            UsingResource::ImageRecipe => "image recipe",
            UsingResource::ContainerRecipe => "container recipe",
        };
        let plural = if self.count == 1 { "" } else { "s" };
        write!(f, "account {} has {} {resource}{plural} of {}", self.account_id, self.count, self.image_id)?;
        match self.ids.as_slice() {
            [] => write!(f, " (says EC2's usage report)"),
            ids if (ids.len() as u64) < self.count => write!(f, " ({}, ...)", ids.join(", ")),
            ids => write!(f, " ({})", ids.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use UsingResource::{ContainerRecipe, ImageRecipe, Instance, LaunchTemplate};

    use super::*;
    use crate::{ids::Region, share::Source};

    #[test]
    fn uses_say_who_has_what() {
        let mut usage = Use {
            account_id: AccountId::parse("222222222222").unwrap(),
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            resource: UsingResource::Instance,
            count: 2,
            ids: vec!["i-1".to_owned(), "i-2".to_owned()],
        };
        assert_eq!(usage.to_string(), "account 222222222222 has 2 instances of ami-0123abcd (i-1, i-2)");
        usage.count = 7;
        assert!(usage.to_string().ends_with("(i-1, i-2, ...)"), "{usage}");
        usage = Use { resource: UsingResource::LaunchTemplate, count: 1, ids: vec![], ..usage };
        assert!(usage.to_string().ends_with("1 launch template of ami-0123abcd (says EC2's usage report)"), "{usage}");
    }

    const ASKED: &str = "222222222222";
    const GONE: &str = "444444444444";

    fn source_image(id: &str) -> SourceImage {
        let (account_id, region) = (AccountId::parse("111111111111").unwrap(), Region::parse("eu-west-1").unwrap());
        SourceImage { source: Source { account_id, region }, image_id: ImageId::parse(id).unwrap() }
    }

    fn used(account: &str, resource: UsingResource, ids: &[&str]) -> Use {
        Use {
            account_id: AccountId::parse(account).unwrap(),
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            resource,
            count: 1,
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    /// All uses, after the targets and the report have spoken.
    fn uses(said: Vec<Use>, reported: Vec<Use>) -> Vec<Use> {
        let mut usage = Usage::default();
        let image = source_image("ami-0123abcd");
        for (account, answered) in [(ASKED, true), (GONE, false), (ASKED, true)] {
            usage.add_account(&image, &AccountId::parse(account).unwrap(), answered);
        }
        assert_eq!((usage.targets.len(), usage.images.len()), (2, 1));
        assert_eq!((&usage.images[0].answered[..], &usage.images[0].unasked[..]), (&[0][..], &[1][..]));
        usage.add(said);
        usage.add_reported(&image, reported);
        usage.uses
    }

    #[test]
    fn what_a_target_says_of_its_instances_counts_and_not_what_is_reported() {
        let instance = used(ASKED, Instance, &["i-1"]);
        assert_eq!(uses(vec![instance.clone()], vec![]), [instance]);
        assert_eq!(uses(vec![], vec![used(ASKED, Instance, &[])]), []);
    }

    #[test]
    fn the_report_counts_for_who_could_not_be_asked_and_for_all_but_instances() {
        let reported = [used(GONE, Instance, &[]), used(GONE, LaunchTemplate, &[]), used(ASKED, LaunchTemplate, &[])]
            .into_iter()
            .chain([ImageRecipe, ContainerRecipe].map(|recipe| used(ASKED, recipe, &[])));
        let reported = Vec::from_iter(reported);
        assert_eq!(uses(vec![], reported.clone()), reported);
    }

    #[test]
    fn what_both_name_is_named_once_and_of_another_image_twice() {
        let template = used(ASKED, LaunchTemplate, &["lt-1"]);
        let reported = used(ASKED, LaunchTemplate, &[]);
        assert_eq!(uses(vec![template.clone()], vec![reported.clone()]), std::slice::from_ref(&template));
        let other = Use { image_id: ImageId::parse("ami-0000abcd").unwrap(), ..reported };
        assert_eq!(uses(vec![template.clone()], vec![other.clone()]), [template, other]);
    }

    /// A target that could not be asked in one Region may have answered in another, and of one image or of none.
    #[test]
    fn who_answered_is_known_by_image() {
        let mut usage = Usage::default();
        let [one, other] = ["ami-0123abcd", "ami-0000abcd"].map(source_image);
        let account = AccountId::parse(ASKED).unwrap();
        usage.add_account(&one, &account, false);
        usage.add_account(&other, &account, true);
        usage.add_account(&one, &AccountId::parse(GONE).unwrap(), true);
        let of_other = Use { image_id: other.image_id.clone(), ..used(ASKED, Instance, &[]) };
        usage.add_reported(&other, vec![of_other]);
        assert_eq!(usage.uses, [], "it answered that it has none");
        // Nothing of that image is to be taken from it.
        let theirs = Use { image_id: other.image_id.clone(), ..used(GONE, LaunchTemplate, &[]) };
        usage.add_reported(&other, vec![theirs]);
        assert_eq!(usage.uses, []);
        usage.add_reported(&one, vec![used(ASKED, Instance, &[])]);
        assert_eq!(usage.uses.len(), 1);
    }

    /// What DescribeUsageReport is given, and answers: the longest there can be.
    #[test]
    fn what_is_known_of_usage_fits_into_what_states_pass_to_each_other() {
        let mut usage = Usage::default();
        for n in 0..crate::revoke::MAX_ROUNDS {
            let image = source_image(&format!("ami-{n:017x}"));
            for target in 0..crate::revoke::MAX_TARGETS_OF_ALL_IMAGES {
                usage.add_account(&image, &AccountId::parse(format!("2{target:011}")).unwrap(), target % 2 == 0);
            }
        }
        usage.add(vec![used(ASKED, LaunchTemplate, &["lt-0123456789abcdef0"; Use::IDS]); Usage::LISTED]);
        let report = serde_json::json!({ "image": usage.images[0].image, "reportId": "imgusg-0123456789abcdef0" });
        let bytes = serde_json::to_string(&usage).unwrap().len();
        let reports = crate::revoke::MAX_ROUNDS * (report.to_string().len() + 1);
        assert!(bytes + reports < 200_000, "{bytes} {reports}");
    }
}
