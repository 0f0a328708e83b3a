// Imported before onnxruntime-node, which from 1.29 on otherwise collects events for upload.
process.env.ORT_DISABLE_TELEMETRY ??= "1";
