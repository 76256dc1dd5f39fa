//! `config.toml`: few keys, each with a default, so that an absent file is a good configuration.

use serde::Deserialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where the configuration is, unless the environment or the runtime's options say otherwise.
pub const CONFIG_PATH: &str = "/etc/lazaret/config.toml";
/// The environment's variable that names another file.
pub const CONFIG_VARIABLE: &str = "LAZARET_CONFIG";

/// The least and the most MiB of a Docker daemon's disk: below the one dockerd's own files do not fit, above the other ext4 is
/// slow to make.
pub(crate) const DOCKER_DISK_MIB: std::ops::RangeInclusive<u64> = 64..=16 << 20;

/// The configuration; [`Config::describe`] prints it with its explanations.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub kernel: PathBuf,
    pub base_image: PathBuf,
    pub docker_image: PathBuf,
    pub docker_disk_mib: u64,
    pub docker_disks_mib: u64,
    pub disk_dir: PathBuf,
    pub vmm: PathBuf,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub boot_timeout_s: u64,
    pub kernel_args: String,
    pub anti_spoofing: bool,
    pub network: NetworkDefault,
    pub host_network: NetworkDefault,
}

/// The network of a sandbox that would have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDefault {
    /// The loopback interface alone.
    None,
    /// A user-mode network, by pasta.
    User,
}

impl NetworkDefault {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::User => "user",
        }
    }
}

/// Every key with its meaning, in the order of the struct; a test holds the two together.
const KEYS: [(&str, &str); 14] = [
    ("kernel", "The guest's kernel, an uncompressed vmlinux."),
    ("base_image", "The guest's root file system, read only and shared by all guests."),
    ("docker_image", "The image of the guest's private Docker daemon, read only and shared by all guests."),
    (
        "docker_disk_mib",
        "The most that daemon can store, in MiB, without an io.lazaret.docker.disk annotation. \
         It takes from the host what is used of it.",
    ),
    (
        "docker_disks_mib",
        "The most that the disks of all such daemons in disk_dir can store together, in MiB, volumes of running sandboxes \
         among them. A daemon whose disk would be too much does not start. 0 sets no limit.",
    ),
    (
        "disk_dir",
        "The directory on whose file system such disks are: without names, but for those of io.lazaret.docker.volume, \
         in volumes/.",
    ),
    ("vmm", "The virtual machine monitor; when empty, `lazaret-vmm` beside the shim's binary, then in PATH."),
    ("vcpus", "vCPUs of a sandbox whose spec has no CPU limit and no io.lazaret.vm.vcpus annotation."),
    (
        "memory_mib",
        "Guest memory in MiB of a sandbox with no memory limit and no io.lazaret.vm.memory annotation. \
         A ceiling, not a reservation.",
    ),
    ("boot_timeout_s", "How long a guest may take until its agent answers, in seconds."),
    ("kernel_args", "Words added to the guest kernel's command line."),
    (
        "anti_spoofing",
        "Whether a guest can send only under the MAC and IP addresses of its network interfaces. \
         Turn it off for containers that route or bridge.",
    ),
    (
        "network",
        "What a sandbox has whose network namespace holds no interface at its start, without an io.lazaret.net annotation: \
         \"none\", the loopback interface alone, or \"user\", a user-mode network by pasta. \
         `docker run --network none` has such a namespace, too.",
    ),
    (
        "host_network",
        "The same where the spec asks for the host's network (--net-host, hostNetwork), which a sandbox never gets.",
    ),
];

impl Default for Config {
    fn default() -> Self {
        Self {
            kernel: "/usr/local/share/lazaret/vmlinux".into(),
            base_image: "/usr/local/share/lazaret/base.erofs".into(),
            docker_image: "/usr/local/share/lazaret/docker.erofs".into(),
            docker_disk_mib: 20 << 10,
            docker_disks_mib: 0,
            disk_dir: "/var/lib/lazaret".into(),
            vmm: PathBuf::new(),
            vcpus: 1,
            memory_mib: 1024,
            boot_timeout_s: 60,
            kernel_args: String::new(),
            anti_spoofing: true,
            network: NetworkDefault::None,
            host_network: NetworkDefault::None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{}: {key} must not be 0", path.display())]
    Zero { path: PathBuf, key: &'static str },
    #[error(
        "{}: docker_disk_mib must be from {} to {}",
        .0.display(), DOCKER_DISK_MIB.start(), DOCKER_DISK_MIB.end()
    )]
    DockerDisk(PathBuf),
}

impl Config {
    /// Loads the file that `option` (the runtime's options) names, else the environment's, else [`CONFIG_PATH`], which
    /// may be absent.
    ///
    /// # Errors
    /// [`ConfigError`], in one line that names the file and the key.
    pub fn load(option: Option<&Path>) -> Result<Self, ConfigError> {
        let chosen =
            option.map(Path::to_path_buf).or_else(|| std::env::var_os(CONFIG_VARIABLE).map(Into::into));
        let path = chosen.clone().unwrap_or_else(|| CONFIG_PATH.into());
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(error) if error.kind() == ErrorKind::NotFound && chosen.is_none() => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            let message = format!("line {line}: {}", error.message().replace('\n', " "));
            ConfigError::Parse { path: path.into(), message }
        })?;
        let numbers = [
            ("vcpus", u64::from(config.vcpus)),
            ("memory_mib", config.memory_mib),
            ("boot_timeout_s", config.boot_timeout_s),
        ];
        match numbers.iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(ConfigError::Zero { path: path.into(), key }),
            None if !DOCKER_DISK_MIB.contains(&config.docker_disk_mib) => {
                Err(ConfigError::DockerDisk(path.into()))
            }
            None => Ok(config),
        }
    }

    /// The configuration as a commented file.
    #[must_use]
    pub fn describe(&self) -> String {
        let quoted = |path: &Path| format!("{:?}", path.to_string_lossy());
        KEYS.iter()
            .map(|(key, meaning)| {
                let value = match *key {
                    "kernel" => quoted(&self.kernel),
                    "base_image" => quoted(&self.base_image),
                    "docker_image" => quoted(&self.docker_image),
                    "docker_disk_mib" => self.docker_disk_mib.to_string(),
                    "docker_disks_mib" => self.docker_disks_mib.to_string(),
                    "disk_dir" => quoted(&self.disk_dir),
                    "vmm" => quoted(&self.vmm),
                    "vcpus" => self.vcpus.to_string(),
                    "memory_mib" => self.memory_mib.to_string(),
                    "boot_timeout_s" => self.boot_timeout_s.to_string(),
                    "kernel_args" => format!("{:?}", self.kernel_args),
                    "anti_spoofing" => self.anti_spoofing.to_string(),
                    "network" => format!("{:?}", self.network.name()),
                    _ => format!("{:?}", self.host_network.name()),
                };
                format!("# {meaning}\n{key} = {value}\n")
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The VMM's binary: the configured one, else the one beside this binary, else the first in `PATH`.
    #[must_use]
    pub fn vmm_binary(&self) -> Option<PathBuf> {
        if !self.vmm.as_os_str().is_empty() {
            return Some(self.vmm.clone());
        }
        let beside = std::env::current_exe().ok().and_then(|binary| Some(binary.parent()?.to_path_buf()));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut directories = beside.into_iter().chain(std::env::split_paths(&path));
        directories.find_map(|directory| Some(directory.join("lazaret-vmm")).filter(|file| file.is_file()))
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
