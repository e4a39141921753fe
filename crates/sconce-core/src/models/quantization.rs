//! [`RawConfig::stored_form`]: what config.json says of weights that were quantized before they were stored.

use serde_json::Value;

use super::RawConfig;
use crate::error::{Error, Result};
use crate::weights::{PackedLayout, Packing, StoredForm};

impl RawConfig {
    /// What the layers' matrices are stored as. Errors: weights that were quantized by a method that is not read here.
    pub fn stored_form(&self) -> Result<StoredForm> {
        // The second is what compressed-tensors called it once.
        let keys = ["quantization_config", "compression_config"];
        let Some((path, values)) = keys.iter().find_map(|key| Some((*key, self.get(key)?))) else {
            return Ok(StoredForm::Plain);
        };
        let config = Config { raw: self, path: path.into(), values };
        match config.text("quant_method") {
            "fp8" if config.get("weight_block_size").is_some() => {
                config.block_shape("weight_block_size").map(StoredForm::Fp8Blocks)
            }
            "fp8" | "fbgemm_fp8" => Ok(StoredForm::Fp8),
            "gptq" => config.gptq().map(StoredForm::Packed),
            "awq" => config.awq().map(StoredForm::Packed),
            "compressed-tensors" => config.compressed_tensors(),
            "mxfp4" => Ok(StoredForm::Mxfp4),
            _ => Err(config.unsupported("quant_method", "fp8, fbgemm_fp8, gptq, awq, compressed-tensors, mxfp4")),
        }
    }
}

/// `quantization_config`, or an object within it.
struct Config<'a> {
    raw: &'a RawConfig,
    /// Where it is.
    path: String,
    values: &'a Value,
}

impl<'a> Config<'a> {
    fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        self.raw.error(&format!("{}.{key}", self.path), message)
    }

    fn unsupported(&self, key: &str, supported: &str) -> Error {
        let found = self.get(key).unwrap_or(&Value::Null);
        self.error(key, format!("{found} is not supported; supported: {supported}"))
    }

    /// What there is, but nulls and empty objects.
    fn get(&self, key: &str) -> Option<&'a Value> {
        let is_nothing = |value: &Value| value.is_null() || value.as_object().is_some_and(|object| object.is_empty());
        self.values.get(key).filter(|value| !is_nothing(value))
    }

    fn object(&self, key: &str) -> Option<Self> {
        let values = self.get(key).filter(|value| value.is_object())?;
        Some(Self { raw: self.raw, path: format!("{}.{key}", self.path), values })
    }

    fn text(&self, key: &str) -> &'a str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// Of several names of a key the one that is there.
    fn either(&self, keys: [&'static str; 2]) -> &'static str {
        if self.get(keys[0]).is_none() && self.get(keys[1]).is_some() { keys[1] } else { keys[0] }
    }

    /// Errors: something by which weights would be other numbers than are read.
    fn refuse(&self, key: &str) -> Result<()> {
        if self.get(key).is_some() { Err(self.error(key, "is not supported")) } else { Ok(()) }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(key, format!("expected true or false, found {value}")))
    }

    /// Bits of a code, one of `supported`.
    fn bits(&self, key: &str, supported: &[usize]) -> Result<usize> {
        let found = self.get(key).unwrap_or(&Value::Null);
        let bits = supported.iter().copied().find(|&bits| found.as_u64() == Some(bits as u64));
        bits.ok_or_else(|| self.error(key, format!("expected one of {supported:?}, found {found}")))
    }

    /// Columns that share a scale; -1, as nothing, is all of a row.
    fn group_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key).filter(|value| value.as_i64() != Some(-1)) else { return Ok(None) };
        let size = value.as_u64().filter(|size| (1..1 << 31).contains(size));
        let error = || self.error(key, format!("expected -1 or an integer from 1 to 2^31, found {value}"));
        size.map(|size| Some(size as usize)).ok_or_else(error)
    }

    /// Rows and columns of a block.
    fn block_shape(&self, key: &str) -> Result<[usize; 2]> {
        let found = self.get(key).unwrap_or(&Value::Null);
        let sizes: Vec<u64> = found.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        match (found.as_array(), &sizes[..]) {
            (Some(all), &[rows, cols]) if all.len() == 2 && [rows, cols].iter().all(|x| (1..1 << 31).contains(x)) => {
                Ok([rows as usize, cols as usize])
            }
            _ => Err(self.error(key, format!("expected two integers from 1 to 2^31, found {found}"))),
        }
    }

    /// Whether zero points are the middle of the codes.
    fn is_symmetric(&self, key: &str, bits: usize) -> Result<bool> {
        let is_symmetric = self.flag(key, true)?;
        if bits == 8 && !is_symmetric {
            return Err(self.error(key, "8 bits with zero points are not supported"));
        }
        Ok(is_symmetric)
    }

    fn gptq(&self) -> Result<Packing> {
        let format = self.either(["checkpoint_format", "format"]);
        let layout = match self.text(format) {
            "" | "gptq" => PackedLayout::Gptq,
            "gptq_v2" => PackedLayout::GptqV2,
            _ => return Err(self.unsupported(format, "gptq, gptq_v2")),
        };
        // Bits and groups of some matrices.
        self.refuse("dynamic")?;
        if self.flag("is_marlin_format", false)? {
            return Err(self.error("is_marlin_format", "is not supported"));
        }
        let bits = self.bits("bits", &[4, 8])?;
        let is_symmetric = self.is_symmetric("sym", bits)?;
        Ok(Packing { layout, bits, group_size: self.group_size("group_size")?, is_symmetric })
    }

    fn awq(&self) -> Result<Packing> {
        let version = self.either(["version", "format"]);
        if !matches!(self.text(version).to_lowercase().as_str(), "" | "gemm") {
            return Err(self.unsupported(version, "gemm"));
        }
        let bits = self.bits(self.either(["bits", "w_bit"]), &[4])?;
        let group_size = self.group_size(self.either(["group_size", "q_group_size"]))?;
        Ok(Packing { layout: PackedLayout::Awq, bits, group_size, is_symmetric: false })
    }

    fn compressed_tensors(&self) -> Result<StoredForm> {
        // By which weights are turned.
        self.refuse("transform_config")?;
        let layout = match self.text("format") {
            "float-quantized" => return self.compressed_floats(),
            "pack-quantized" => PackedLayout::PackQuantized,
            "int-quantized" => PackedLayout::IntQuantized,
            _ => return Err(self.unsupported("format", "float-quantized, pack-quantized, int-quantized")),
        };
        if let Some(sparsity) = self.object("sparsity_config").filter(|config| config.text("format") != "dense") {
            return Err(sparsity.unsupported("format", "dense"));
        }
        let groups = self.object("config_groups");
        let names = groups.iter().flat_map(|groups| groups.values.as_object()).flat_map(|object| object.keys());
        let mut found = None;
        for name in names {
            let weights = groups.as_ref().and_then(|groups| groups.object(name)?.object("weights"));
            let Some(weights) = weights else {
                return Err(self.error(&format!("config_groups.{name}.weights"), "is missing"));
            };
            let packing = weights.of_group(layout)?;
            if *found.get_or_insert(packing) != packing {
                return Err(self.error("config_groups", "weights that are quantized in several ways are not supported"));
            }
        }
        found.map(StoredForm::Packed).ok_or_else(|| self.error("config_groups", "is missing"))
    }

    /// e4m3, whose tensors say how many scales there are, but not of what.
    fn compressed_floats(&self) -> Result<StoredForm> {
        let groups = self.object("config_groups");
        let names = groups.iter().flat_map(|groups| groups.values.as_object()).flat_map(|object| object.keys());
        let weights = names.filter_map(|name| groups.as_ref()?.object(name)?.object("weights"));
        let mut blocks = weights.filter(|weights| weights.text("strategy") == "block");
        let Some(first) = blocks.next() else { return Ok(StoredForm::Fp8) };
        let block = first.block_shape("block_structure")?;
        if blocks.any(|other| other.block_shape("block_structure").is_ok_and(|other| other != block)) {
            return Err(self.error("config_groups", "blocks of several sizes are not supported"));
        }
        Ok(StoredForm::Fp8Blocks(block))
    }

    /// Of the weights of one of compressed-tensors' groups.
    fn of_group(&self, layout: PackedLayout) -> Result<Packing> {
        if !matches!(self.text("type"), "" | "int") {
            return Err(self.unsupported("type", "int"));
        }
        let bits = self.bits("num_bits", if layout == PackedLayout::PackQuantized { &[4, 8] } else { &[8] })?;
        let group_size = match self.text("strategy") {
            "channel" => None,
            "group" => self.group_size("group_size")?,
            _ => return Err(self.unsupported("strategy", "channel, group")),
        };
        Ok(Packing { layout, bits, group_size, is_symmetric: self.is_symmetric("symmetric", bits)? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn form(config: Value) -> Result<StoredForm, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json!({"quantization_config": config}).to_string()).unwrap();
        RawConfig::from_dir(dir.path()).unwrap().stored_form().map_err(|e| e.to_string())
    }

    /// With one group, whose weights are these.
    fn compressed(format: &str, weights: Value) -> Value {
        let groups = json!({"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": null}});
        json!({"quant_method": "compressed-tensors", "format": format, "config_groups": groups})
    }

    /// `config` with other values at some keys.
    fn with(mut config: Value, other: Value) -> Value {
        let others = other.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(others);
        config
    }

    #[test]
    fn methods_are_read() {
        assert_eq!(form(json!(null)), Ok(StoredForm::Plain));
        for config in [
            json!({"quant_method": "fp8", "weight_block_size": null}),
            json!({"quant_method": "fbgemm_fp8"}),
            json!({"quant_method": "compressed-tensors", "format": "float-quantized"}),
        ] {
            assert_eq!(form(config.clone()), Ok(StoredForm::Fp8), "{config}");
        }
        assert_eq!(
            form(json!({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})),
            Ok(StoredForm::Mxfp4)
        );
        let blocks = json!({"quant_method": "fp8", "weight_block_size": [128, 64]});
        assert_eq!(form(blocks), Ok(StoredForm::Fp8Blocks([128, 64])));
        let weights = json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]});
        let expected = Ok(StoredForm::Fp8Blocks([128, 128]));
        assert_eq!(form(compressed("float-quantized", weights)), expected);
        let weights = json!({"num_bits": 8, "type": "float", "strategy": "channel"});
        assert_eq!(form(compressed("float-quantized", weights)), Ok(StoredForm::Fp8));
        let expected = |layout, bits, group_size, is_symmetric| {
            Ok(StoredForm::Packed(Packing { layout, bits, group_size, is_symmetric }))
        };
        let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false, "dynamic": {}});
        assert_eq!(form(gptq.clone()), expected(PackedLayout::Gptq, 4, Some(128), true));
        let other = json!({"bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"});
        assert_eq!(form(with(gptq.clone(), other)), expected(PackedLayout::GptqV2, 8, None, true));
        assert_eq!(form(with(gptq.clone(), json!({"sym": false}))), expected(PackedLayout::Gptq, 4, Some(128), false));
        assert_eq!(form(with(gptq, json!({"format": "gptq_v2"}))), expected(PackedLayout::GptqV2, 4, Some(128), true));
        let old = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"});
        assert_eq!(form(old), expected(PackedLayout::Awq, 4, Some(64), false));
        let new = json!({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": true});
        assert_eq!(form(new), expected(PackedLayout::Awq, 4, Some(64), false));
        let weights = json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32});
        let sparse = json!({"sparsity_config": {"format": "dense"}, "transform_config": {}});
        let config = with(compressed("pack-quantized", weights), sparse);
        assert_eq!(form(config), expected(PackedLayout::PackQuantized, 4, Some(32), false));
        let weights =
            json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "group_size": null});
        let config = compressed("int-quantized", weights);
        assert_eq!(form(config), expected(PackedLayout::IntQuantized, 8, None, true));
    }

    #[test]
    fn an_old_name_of_the_object_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"compression_config": {"quant_method": "compressed-tensors", "format": "marlin-24"}});
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let error = RawConfig::from_dir(dir.path()).unwrap().stored_form().unwrap_err().to_string();
        assert!(error.contains("compression_config.format: \"marlin-24\""), "{error}");
    }

    #[test]
    fn what_is_not_read_is_named() {
        let gptq = |other: Value| with(json!({"quant_method": "gptq", "bits": 4, "group_size": 128}), other);
        let weights = |other: Value| {
            with(json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32}), other)
        };
        let packed = |other: Value| compressed("pack-quantized", weights(other));
        let two_groups = json!({"config_groups": {"a": {"weights": weights(json!({}))}, "b": {"weights": weights(json!({"num_bits": 8}))}}});
        for (config, words) in [
            (json!({}), "quantization_config.quant_method: null is not supported"),
            (json!({"quant_method": "hqq"}), "quantization_config.quant_method: \"hqq\" is not supported"),
            (
                json!({"quant_method": "fp8", "weight_block_size": [128]}),
                "quantization_config.weight_block_size: expected two",
            ),
            (json!({"quant_method": "fp8", "weight_block_size": [128, 0]}), "quantization_config.weight_block_size"),
            (json!({"quant_method": "fp8", "weight_block_size": [128, 128, "128"]}), "found [128,128,\"128\"]"),
            (
                compressed("float-quantized", json!({"strategy": "block"})),
                "weights.block_structure: expected two integers",
            ),
            (gptq(json!({"bits": 3})), "quantization_config.bits: expected one of [4, 8], found 3"),
            (gptq(json!({"group_size": 0})), "quantization_config.group_size: expected -1 or"),
            (gptq(json!({"sym": 1})), "quantization_config.sym: expected true or false"),
            (gptq(json!({"sym": false, "bits": 8})), "quantization_config.sym: 8 bits"),
            (gptq(json!({"checkpoint_format": "marlin"})), "quantization_config.checkpoint_format: \"marlin\""),
            (gptq(json!({"is_marlin_format": true})), "quantization_config.is_marlin_format"),
            (gptq(json!({"dynamic": {"-:.*": {}}})), "quantization_config.dynamic: is not supported"),
            (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "quantization_config.version: \"gemv\""),
            (json!({"quant_method": "awq", "bits": 4, "format": "llm-awq"}), "quantization_config.format: \"llm-awq\""),
            (json!({"quant_method": "awq"}), "quantization_config.bits: expected one of [4], found null"),
            (compressed("marlin-24", weights(json!({}))), "quantization_config.format: \"marlin-24\""),
            (with(packed(json!({})), json!({"transform_config": {"a": 1}})), "quantization_config.transform_config"),
            (
                with(packed(json!({})), json!({"sparsity_config": {"format": "sparse-bitmask"}})),
                "quantization_config.sparsity_config.format",
            ),
            (with(packed(json!({})), json!({"config_groups": {}})), "quantization_config.config_groups: is missing"),
            (
                with(packed(json!({})), json!({"config_groups": {"a": {"weights": null}}})),
                "quantization_config.config_groups.a.weights: is missing",
            ),
            (with(packed(json!({})), two_groups), "quantization_config.config_groups: weights that are"),
            (packed(json!({"type": "float"})), "quantization_config.config_groups.group_0.weights.type: \"float\""),
            (packed(json!({"num_bits": 2})), "quantization_config.config_groups.group_0.weights.num_bits"),
            (packed(json!({"strategy": "tensor"})), "quantization_config.config_groups.group_0.weights.strategy"),
            (compressed("int-quantized", weights(json!({}))), "weights.num_bits: expected one of [8], found 4"),
        ] {
            let error = form(config.clone()).unwrap_err();
            assert!(error.contains("config.json") && error.contains(words), "{config}: {error}");
        }
    }
}
