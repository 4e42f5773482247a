//! Other limits for a group that is in use: all of them are put in force, or none.

use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};

use super::files::{self, Setting};
use super::groups::{components, enable};
use super::systemd;
use super::tree::{self, Tree};
use super::{Cgroup, check_controllers, limits_nothing};
use crate::exit;
use crate::oci::{Memory, Resources};

/// A setting to write, and the line that puts back what was there.
struct Change {
    setting: Setting,
    before: String,
}

impl Cgroup {
    /// Puts other limits in force. What `resources` leaves out, or sets to zero, stays as it is; -1 is no limit. All is
    /// looked at before anything is written; where the kernel then refuses a value, the earlier ones are put back.
    /// Usage (2) where a value makes no sense, also together with what is in force. What is the scope's is told to systemd, where the
    /// group is in one.
    pub fn update(&self, resources: &Resources, scope: Option<&str>) -> Result<()> {
        let tree = Tree::find()?.ok_or_else(|| anyhow!("control group {}: no cgroup v2 file system", self.path))?;
        let resources = self.completed(resources)?;
        let mut settings = files::files(&resources)?;
        // No limit is what a group without the file has.
        settings.retain(|setting| !setting.is_default() || self.has(&setting.file));
        check_controllers(&tree, &settings)?;
        if let Some(memory) = &resources.memory {
            self.check_usage(memory)?;
        }
        let names = components(&self.path)?;
        let mut parent = tree.root.try_clone().context("cgroup2")?;
        for (depth, name) in names.iter().enumerate() {
            enable(parent.as_fd(), &settings)
                .with_context(|| format!("parent of control group /{}", names[..=depth].join("/")))?;
            parent = tree::open_dir(parent.as_fd(), name).with_context(|| format!("control group {}", self.path))?;
        }
        let properties = systemd::of_settings(&settings);
        let mut changes = Vec::new();
        for setting in settings {
            changes.extend(self.change(setting)?);
        }
        self.make(&changes)?;
        match scope.filter(|_| !properties.is_empty()) {
            None => Ok(()),
            Some(scope) => {
                systemd::set(scope, &properties).map_err(|error| self.put_back(changes.iter().collect(), error))
            }
        }
    }

    /// The resources with zeros left out, and with the other half of what has to be written together: of cpu.max, quota and period;
    /// of memory and swap, which are counted together, the memory.
    fn completed(&self, asked: &Resources) -> Result<Resources> {
        let mut resources = asked.clone();
        if let Some(memory) = &mut resources.memory {
            memory.limit = memory.limit.filter(|limit| *limit != 0);
            if memory.swap.is_some_and(|swap| swap > 0) && memory.limit.is_none() {
                memory.limit = self.number("memory.max")?;
            }
        }
        resources.pids = resources.pids.filter(|pids| pids.limit != 0);
        if let Some(cpu) = &mut resources.cpu {
            cpu.quota = cpu.quota.filter(|quota| *quota != 0);
            cpu.period = cpu.period.filter(|period| *period != 0);
            if cpu.quota.is_some() != cpu.period.is_some()
                && let Some(now) = self.read("cpu.max")?
                && let Some((quota, period)) = now.trim_end().split_once(' ')
            {
                cpu.quota = cpu.quota.or(Some(quota.parse().unwrap_or(-1)));
                cpu.period = cpu.period.or(period.parse().ok());
            }
        }
        Ok(resources)
    }

    /// With `checkBeforeUpdate`, a limit below what is in use is refused: the kernel would kill to get there.
    fn check_usage(&self, memory: &Memory) -> Result<()> {
        if memory.check_before_update == Some(true)
            && let Some(limit) = memory.limit.filter(|limit| *limit > 0)
            && let Some(used) = self.number("memory.current")?
            && used > limit
        {
            return Err(exit::busy(format!("memory limit: {limit} bytes are less than the {used} in use")));
        }
        Ok(())
    }

    /// What is written for a setting and what was there. `None` where there is nothing to limit.
    fn change(&self, mut setting: Setting) -> Result<Option<Change>> {
        if !self.has(&setting.file)
            && let Some((file, value)) = setting.otherwise.take()
        {
            (setting.file, setting.value) = (file, value);
        }
        let context = |setting: &Setting| format!("{}: read {}/{}", setting.what, self.path, setting.file);
        match tree::read(self.dir(), &setting.file) {
            Ok(now) => Ok(Some(Change { before: line_before(&setting, &now), setting })),
            Err(error) if limits_nothing(&setting, &error) => Ok(None),
            Err(error) => Err(error).with_context(|| context(&setting)),
        }
    }

    /// Writes the changes; where one is refused, undoes the ones before it.
    fn make(&self, changes: &[Change]) -> Result<()> {
        let mut done: Vec<&Change> = Vec::new();
        let mut left: Vec<&Change> = changes.iter().collect();
        // Some values are refused while another is in force (a burst above the quota, a weight while idle), so what is refused is
        // tried again after the rest. Of one file the order stays.
        let refused = loop {
            let mut refused = None;
            let mut next: Vec<&Change> = Vec::new();
            let before = done.len();
            for change in left {
                if next.iter().any(|other| other.setting.file == change.setting.file) {
                    next.push(change);
                    continue;
                }
                match self.write_one(&change.setting) {
                    Ok(()) => done.push(change),
                    Err(error) => {
                        refused.get_or_insert(error);
                        next.push(change);
                    }
                }
            }
            match refused {
                None => return Ok(()),
                Some(error) if done.len() == before => break error,
                Some(_) => left = next,
            }
        };
        Err(self.put_back(done, refused))
    }

    /// Undoes changes because of an error, which is given back.
    fn put_back(&self, done: Vec<&Change>, mut because: anyhow::Error) -> anyhow::Error {
        for Change { setting, before } in done.into_iter().rev() {
            if let Err(error) = tree::write(self.dir(), &setting.file, before) {
                because = because.context(format!("{}/{} is changed all the same: {error}", self.path, setting.file));
            }
        }
        because
    }

    fn has(&self, file: &str) -> bool {
        rustix::fs::statat(self.dir(), file, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn number(&self, file: &str) -> Result<Option<i64>> {
        Ok(self.read(file)?.and_then(|text| text.trim_end().parse().ok()))
    }
}

/// What to write to have `now`, the content of the setting's file, again. Of files with a line for each device, the one that the
/// setting is about.
fn line_before(setting: &Setting, now: &str) -> String {
    let keyed = ["io", "rdma", "misc"].contains(&setting.controller.as_str());
    let Some(key) = setting.value.split(' ').next().filter(|_| keyed) else {
        // A write of nothing is none.
        return if now.trim().is_empty() { "\n".to_owned() } else { now.trim_end().to_owned() };
    };
    let line = now.lines().find(|line| line.split(' ').next() == Some(key));
    line.map(str::to_owned).unwrap_or_else(|| {
        // Only devices with a limit of their own have a line.
        let none = match setting.file.as_str() {
            "io.max" => "rbps=max wbps=max riops=max wiops=max",
            "io.latency" => "target=0",
            "rdma.max" => "hca_handle=max hca_object=max",
            file if file.ends_with("weight") => "default",
            _ => "max",
        };
        format!("{key} {none}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_put_back() {
        let io = "8:0 rbps=max wbps=5 riops=max wiops=max\n8:16 rbps=1 wbps=max riops=max wiops=max\n";
        for (json, now, want) in [
            (r#"{"memory":{"limit":100}}"#, "max\n", "max"),
            (r#"{"cpu":{"quota":5000,"period":50000}}"#, "max 100000\n", "max 100000"),
            (r#"{"cpu":{"cpus":"0-1"}}"#, "\n", "\n"),
            (r#"{"cpu":{"cpus":"0-1"}}"#, "0\n", "0"),
            (r#"{"blockIO":{"weight":500}}"#, "default 100\n8:0 200\n", "default 100"),
            (r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":10}]}}"#, "default 100\n", "8:0 default"),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":16,"rate":9}]}}"#,
                io,
                "8:16 rbps=1 wbps=max riops=max wiops=max",
            ),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":1,"rate":9}]}}"#,
                io,
                "8:1 rbps=max wbps=max riops=max wiops=max",
            ),
            (r#"{"unified":{"misc.max":"sev 1"}}"#, "sev max\n", "sev max"),
        ] {
            let resources: Resources = serde_json::from_str(json).unwrap();
            let setting = files::files(&resources).unwrap().remove(0);
            assert_eq!(line_before(&setting, now), want, "{json}");
        }
    }
}
