//! `emberline status`: the workers of a running stack, as their heartbeats tell.

use emberline_shared::heartbeat::Heartbeat;

use crate::access::{self, AccessArgs};
use crate::cache::Cache;

pub(crate) fn run(args: &AccessArgs, cache: &Cache) -> anyhow::Result<()> {
    let access = args.resolve(cache)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let heartbeats = runtime.block_on(async {
        let client = access.connect().await?;
        access::heartbeats(&client).await
    })?;
    println!("{}", render(&heartbeats));
    Ok(())
}

fn render(heartbeats: &[Heartbeat]) -> String {
    if heartbeats.is_empty() {
        return "no worker is there".to_owned();
    }
    let rows = heartbeats.iter().map(|beat| {
        let models: Vec<&str> = beat.models.iter().map(|model| model.name.as_str()).collect();
        let state = if beat.draining { "draining" } else { "serving" };
        [
            beat.worker.clone(),
            models.join(","),
            format!("{}/{}", beat.active, beat.capacity),
            state.to_owned(),
            format!("{} {}", beat.engine, beat.version),
            beat.device.clone(),
        ]
    });
    table(&["worker", "models", "jobs", "state", "engine", "device"].map(String::from), rows)
}

/// Columns as wide as their widest cell.
pub(crate) fn table<const N: usize>(head: &[String; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.clone()).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row.get(column).map_or(0, |c| c.chars().count())).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let lines = rows.iter().map(|row| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_shared::heartbeat::ServedModel;

    #[test]
    fn each_worker_has_a_line() {
        let beat = Heartbeat {
            v: 1,
            worker: "w1".into(),
            models: vec![ServedModel { name: "m".into(), context_length: 1, created: 0 }],
            engine: "burn".into(),
            device: "CPU (flex)".into(),
            version: "0.1.0".into(),
            capacity: 8,
            active: 3,
            draining: false,
        };
        let text = render(&[beat.clone(), Heartbeat { worker: "worker-2".into(), draining: true, ..beat }]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "worker    models  jobs  state     engine      device");
        assert_eq!(lines[1], "w1        m       3/8   serving   burn 0.1.0  CPU (flex)");
        assert_eq!(lines[2], "worker-2  m       3/8   draining  burn 0.1.0  CPU (flex)");
        assert_eq!(render(&[]), "no worker is there");
    }
}
