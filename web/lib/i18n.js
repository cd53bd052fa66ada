// Texts of panels and dialogs in English and Chinese, and number formats.
import { app } from "../../../scripts/app.js";

const MESSAGES = {
  en: {
    fits: "Fits", streams: "Streams", "too big": "Too big", cpu: "On the CPU", missing: "Not installed", wrong: "Refused", pending: "…",
    toy: "toy model", connect: "Connect a loader to model to see what a run needs.",
    card: "{peak} of {all} GB", memory: "{peak} of {all} GB main memory", about: "about {time}",
    unknown: "{names}: not known before the run; planned with the defaults",
    plan: "Plan", size: "Size…", get: "Get a model…", models: "Models…", record: "Details", close: "Close",
    notKept: "Your line was used. Not kept by the model: {facts}", yourLine: "Your line was used: {problem}",
    left: "{time} left", took: "Took {time}", predicted: "predicted {value}", peak: "peak {gb} GB of the card",
    installed: "Installed: {names}", none: "No model installed: the built-in toy model is used.",
    fetchable: "“{button}” lists the models to download, with size and source.",
    fetch: "Download", stop: "Stop", resume: "Resume", here: "Installed", "title.models": "Models to download",
    licence: "licence", smallest: "card of {gb} GB or more", unsized: "size unknown until the download starts", from: "from", into: "into {folder}",
    fetching: "Downloading {file}", copied: "{done} of {all}", speed: "{speed}/s",
    done: "Downloaded. Choose it in the loader, or leave auto.", note: "Nothing is downloaded until you press a button.",
    "title.plan": "Memory plan", "title.record": "Run details", phases: "Seconds by phase", estimate: "estimate",
    negative: "Negative prompt", copy: "Copy",
  },
  zh: {
    fits: "放得下", streams: "流式加载", "too big": "放不下", cpu: "用 CPU 计算", missing: "未安装", wrong: "参数无效", pending: "…",
    toy: "内置玩具模型", connect: "将加载节点接到 model，即可预估所需显存。",
    card: "显存 {peak} / {all} GB", memory: "内存 {peak} / {all} GB", about: "约 {time}",
    unknown: "{names} 运行时才能确定，先按默认值估算",
    plan: "计划", size: "尺寸…", get: "获取模型…", models: "模型…", record: "详情", close: "关闭",
    notKept: "已使用原句。模型丢失了：{facts}", yourLine: "已使用原句：{problem}",
    left: "还需 {time}", took: "用时 {time}", predicted: "预估 {value}", peak: "显存峰值 {gb} GB",
    installed: "已安装：{names}", none: "没有安装模型：使用内置玩具模型。",
    fetchable: "点“{button}”查看要下载什么、多大、来自哪里。",
    fetch: "下载", stop: "停止", resume: "继续", here: "已安装", "title.models": "可下载的模型",
    licence: "许可证", smallest: "显卡 {gb} GB 起", unsized: "大小在开始下载时确定", from: "来自", into: "存到 {folder}",
    fetching: "正在下载 {file}", copied: "{done} / {all}", speed: "{speed}/秒",
    done: "已下载。在加载节点里选它，或保留 auto。", note: "点击按钮之后才会开始下载。",
    "title.plan": "显存计划", "title.record": "生成详情", phases: "各阶段秒数", estimate: "预估",
    negative: "反向提示词", copy: "复制",
    "Encoding prompt": "编码提示词", "Preparing the task": "准备任务", Sampling: "采样", Decoding: "解码",
    "Expanding prompt": "扩写提示词", "Asking the server": "等待服务器响应", "Long video": "长视频",
    "Loading text encoder (MB)": "加载文本编码器（MB）", "Loading text encoder 2 (MB)": "加载文本编码器 2（MB）",
    "Loading transformer (MB)": "加载 transformer（MB）", "Loading vae (MB)": "加载 VAE（MB）",
    "Loading prompt model (MB)": "加载提示词模型（MB）", "Text encoder (blocks)": "文本编码器（块）",
    "Text encoder 2 (blocks)": "文本编码器 2（块）",
  },
};

export function language() {
  const chosen = app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language ?? "en";
  return String(chosen).startsWith("zh") ? "zh" : "en";
}

export function t(key, values = {}) {
  const text = MESSAGES[language()][key] ?? MESSAGES.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export function time(seconds) {
  const zh = language() === "zh";
  if (seconds < 10) return `${seconds.toFixed(1)} ${zh ? "秒" : "s"}`;
  if (seconds < 120) return `${Math.round(seconds)} ${zh ? "秒" : "s"}`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} ${zh ? "分钟" : "min"}`;
  return `${(seconds / 3600).toFixed(1)} ${zh ? "小时" : "h"}`;
}

export function bytes(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return `${(count / size).toFixed(1)} ${unit}`;
  }
  return `${count} B`;
}
