// Chromium from npm with the libraries and the font that it needs: works without root and system packages.
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import puppeteer from "puppeteer-core";

const FONTS = `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir prefix="relative">fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
`;

/** Returns puppeteer's launch options for it. CHROMIUM=/path/to/a/browser selects another browser, unchanged. */
async function browser() {
  if (process.env.CHROMIUM) return { executablePath: process.env.CHROMIUM };
  const modules = await fs.realpath(path.join(import.meta.dirname, "node_modules"));
  const folder = path.join(modules, ".chromium"); // npm clears it when it installs another version
  if (!(await exists(folder))) await unpack(folder);
  const libraries = [path.join(folder, "al2023", "lib"), process.env.LD_LIBRARY_PATH].filter(Boolean).join(":");
  const env = { ...process.env, LD_LIBRARY_PATH: libraries, FONTCONFIG_PATH: path.join(folder, "fonts") };
  return { executablePath: path.join(folder, "chromium"), env };
}

/** Launches it with an empty profile, and returns the result of `use(browser)`; browser and profile end with it. */
export async function withBrowser(use, { args = [], ...options } = {}) {
  const profile = await fs.mkdtemp(path.join(os.tmpdir(), "leadre-browser-"));
  const running = await puppeteer.launch({
    ...(await browser()),
    headless: "shell",
    pipe: true, // so that the browser ends with this process, even if it is killed
    userDataDir: profile,
    args: [
      "--no-first-run",
      "--disable-background-networking",
      ...args,
      ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
    ],
    ...options,
  });
  try {
    return await use(running);
  } finally {
    await running.close();
    await fs.rm(profile, { recursive: true, force: true });
  }
}

/** Unpacks into a temporary folder and renames it: a killed run leaves no partial browser; the first of two wins. */
async function unpack(folder) {
  const part = await fs.mkdtemp(`${folder}-`);
  process.env.TMPDIR = part; // the package unpacks there
  process.env.AWS_EXECUTION_ENV = "nodejs20.x"; // makes the package unpack its libraries, too
  const { default: chromium } = await import("@sparticuz/chromium");
  await chromium.executablePath();
  await fs.writeFile(path.join(part, "fonts", "fonts.conf"), FONTS); // the package's own file refers to /tmp/fonts
  await fs.rename(part, folder).catch(async (error) => {
    await fs.rm(part, { recursive: true });
    if (!(await exists(folder))) throw error;
  });
  delete process.env.TMPDIR;
}

const exists = (file) => fs.access(file).then(() => true, () => false);
