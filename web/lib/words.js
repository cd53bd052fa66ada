// What the panels say, in the language of the page.
import { app } from "../../../scripts/app.js";

const WORDS = {
  en: {
    fits: "Fits", streams: "Streams", "too big": "Too big", cpu: "On the CPU", missing: "Not installed", wrong: "Refused", asking: "…",
    toy: "toy model", connect: "Connect a loader to model to see what a run needs.",
    card: "{peak} of {all} GB", memory: "{peak} of {all} GB main memory", about: "about {time}",
    unknown: "{names} will be known in the run; planned with the defaults",
    plan: "Plan", size: "Size…", get: "Get a model…", models: "Models…", record: "Details", close: "Close",
    left: "{time} left", took: "Took {time}", predicted: "predicted {value}", peak: "peak {gb} GB of the card",
    installed: "Installed: {names}", none: "No model installed: the toy model that comes with Piying runs.",
    fetchable: "“{button}” shows what to fetch, how large it is and from where.",
    fetch: "Fetch", stop: "Stop", resume: "Go on", here: "Installed", "title.models": "Models to fetch",
    licence: "licence", smallest: "card of {gb} GB or more", unsized: "size: the hub says", from: "from", into: "into {folder}",
    fetching: "Fetching {file}", copied: "{done} of {all}", speed: "{speed}/s",
    done: "Here. Choose it in the loader, or leave auto.", note: "Nothing is fetched before you press a button.",
    "title.plan": "Memory plan", "title.record": "How this was made", phases: "Seconds by phase", estimate: "estimate",
    negative: "Negative prompt", copy: "Copy",
  },
  zh: {
    fits: "放得下", streams: "分块载入", "too big": "放不下", cpu: "用 CPU 计算", missing: "未安装", wrong: "不能用", asking: "…",
    toy: "内置小模型", connect: "给 model 接上加载节点，即可预估所需显存。",
    card: "显存 {peak} / {all} GB", memory: "内存 {peak} / {all} GB", about: "约 {time}",
    unknown: "{names} 运行时才知道，先按默认值估算",
    plan: "计划", size: "尺寸…", get: "获取模型…", models: "模型…", record: "详情", close: "关闭",
    left: "还需 {time}", took: "用时 {time}", predicted: "预估 {value}", peak: "显存峰值 {gb} GB",
    installed: "已安装：{names}", none: "没有安装模型：用的是 Piying 自带的小模型。",
    fetchable: "点“{button}”查看要下载什么、多大、来自哪里。",
    fetch: "下载", stop: "停止", resume: "继续", here: "已安装", "title.models": "可下载的模型",
    licence: "许可证", smallest: "显卡 {gb} GB 起", unsized: "大小由下载站给出", from: "来自", into: "存到 {folder}",
    fetching: "正在下载 {file}", copied: "{done} / {all}", speed: "{speed}/秒",
    done: "已下载。在加载节点里选它，或保留 auto。", note: "不按按钮，什么也不会下载。",
    "title.plan": "显存计划", "title.record": "生成详情", phases: "各阶段秒数", estimate: "预估",
    negative: "反向提示词", copy: "复制",
    "Encoding prompt": "读提示词", "Preparing the task": "准备素材", Sampling: "采样", Decoding: "解码",
    "Expanding prompt": "写提示词", "Asking the server": "等服务器回答", "Long video": "长视频",
  },
};

export function language() {
  const chosen = app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language ?? "en";
  return String(chosen).startsWith("zh") ? "zh" : "en";
}

export function say(key, values = {}) {
  const text = WORDS[language()][key] ?? WORDS.en[key] ?? key;
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
