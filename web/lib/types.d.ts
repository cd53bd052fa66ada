// Shapes of what the modules hand to each other, for JSDoc; the page loads no types.
import type { Viewer } from "./viewer.js";

// Of ComfyUI's frontend: what is used here, as its versions from 1.21 on have it.
export interface Widget {
  name: string;
  value: any;
  options: Record<string, any>;
  element?: HTMLElement;
  advanced?: boolean;
  serialize?: boolean;
  callback?: (value: unknown, canvas: unknown, node: ComfyNode) => void;
  computeSize?: () => [number, number];
  computeLayoutSize?: (node: ComfyNode) => object;
}

export interface Slot {
  name: string;
  type: string;
  link?: number | null;
  label?: string;
  localized_name?: string;
  widget?: { name: string };
}

export interface Graph {
  _nodes?: ComfyNode[];
  links: any;
  getLink?: (id: number) => Link | undefined;
  getNodeById: (id: number | string) => ComfyNode | null;
}

export interface Link {
  origin_id: number | string;
  origin_slot: number;
}

export interface ComfyNode {
  id: number | string;
  type: string;
  title: string;
  comfyClass?: string;
  mode: number;
  size: [number, number];
  graph: Graph;
  subgraph?: Graph;
  inputs?: Slot[];
  outputs?: Slot[];
  widgets?: Widget[];
  showAdvanced?: boolean;
  addDOMWidget: (name: string, type: string, element: HTMLElement, options: object) => Widget;
  setSize: (size: [number, number]) => void;
  computeSize?: () => [number, number];
  setDirtyCanvas?: (foreground: boolean, background: boolean) => void;
  toggleAdvanced?: () => void;
  onExecuted?: (output: Output, ...rest: unknown[]) => unknown;
  onRemoved?: (...rest: unknown[]) => unknown;
}

export type Declared = [kind: string | string[], options?: Record<string, any>];
export interface Definition {
  required?: Record<string, Declared>;
  optional?: Record<string, Declared>;
}

// Of the pack's routes and events; see nodes/routes.py.
export interface Plan {
  verdict: string;
  text?: string;
  error?: string;
  reasons?: string[];
  caution?: string;
  model?: string;
  toy?: boolean;
  reads?: string;
  offer?: string;
  sizes?: [number, number][];
  settings?: Record<string, number>;
  fitting?: Record<string, number>[];
  from_task?: Record<string, number | null>;
  unknown: string[];
  seconds: number | null;
  peak_vram_gb: number;
  peak_ram_gb: number;
  machine: { vram_gb: number | null; ram_gb: number };
}

export interface Question {
  class_type: string;
  inputs: Record<string, any>;
  wired: string[];
}

export interface Progress {
  node: string;
  phase: string;
  done: number;
  total: number;
  seconds_left: number | null;
}

export type RunRecord = Record<string, any>;

// Contact sheets as core/media/contact_sheet.py writes them: names of files, and where each frame is on them.
export interface Sheets {
  sheet: string;
  before?: string;
  mask?: string;
  columns: number;
  width: number;
  height: number;
  frames: number[];
  total: number;
}

export interface Output {
  piying?: RunRecord[];
  piying_frames?: Sheets[];
  text?: string[];
}

// A model or LoRA of the manifest, and a download.
export interface Offer {
  id: string;
  kind: string;
  title: string;
  bytes: number | null;
  exact: boolean;
  licence: string;
  min_vram_gb: number | null;
  sources: string[];
  here: "yes" | "part" | "no";
}

export interface Job {
  model: string;
  state: string;
  message: string;
  file?: string;
  done: number;
  speed?: number;
}

export interface Advice {
  plans?: Record<string, { fits: boolean; words: string; seconds: number }>;
  recommended?: string;
}

export interface ModelsFound extends Advice {
  offers: Offer[];
  installed: string[];
  folder: string;
  free: number;
  hubs: Record<string, string>;
  commands: Record<string, string>;
  job?: Job;
}

// The state of the models dialog while it is open.
export interface ModelsState {
  loader: string | null;
  preferred?: string;
  list: HTMLElement;
  problem: HTMLElement;
  modal: HTMLDialogElement;
  timer: number;
  fetching: boolean;
  key?: string;
  advice?: Advice;
}

export interface Panel {
  node: ComfyNode;
  role: string;
  box: HTMLElement;
  inner: Panel | null;
  outer?: Panel | null;
  plan: Plan | null;
  problem: string | null;
  failure: string | null;
  running: Progress | null;
  motion: string | null;
  record: RunRecord | null;
  text: string | null;
  sheets: Sheets | null;
  viewer: Viewer | null;
  output?: Output;
  own: number;
  height?: number;
  key?: string | null;
  busy?: boolean;
}

// A message of the server with {names}, and the translation.
export interface Template {
  names: string[];
  own: string;
  pattern: RegExp;
  size?: number;
}
