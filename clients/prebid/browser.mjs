// The Chromium that npm delivers, with the libraries and the font that it needs: no root, nothing to install beside it.
import fs from "node:fs/promises";
import path from "node:path";

const FONTS = `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir prefix="relative">fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
`;

/** What puppeteer needs to start it. CHROMIUM=/path/to/a/browser takes that one as it is. */
export async function browser() {
  if (process.env.CHROMIUM) return { executablePath: process.env.CHROMIUM };
  const modules = await fs.realpath(path.join(import.meta.dirname, "node_modules"));
  const folder = path.join(modules, ".chromium"); // which npm clears when it installs another version
  if (!(await exists(folder))) await unpack(folder);
  const libraries = [path.join(folder, "al2023", "lib"), process.env.LD_LIBRARY_PATH].filter(Boolean).join(":");
  const env = { ...process.env, LD_LIBRARY_PATH: libraries, FONTCONFIG_PATH: path.join(folder, "fonts") };
  return { executablePath: path.join(folder, "chromium"), env };
}

/** Renamed when it is whole: a killed run leaves no half browser, and of two at a time the second is thrown away. */
async function unpack(folder) {
  const part = await fs.mkdtemp(`${folder}-`);
  process.env.TMPDIR = part; // where the package unpacks to
  process.env.AWS_EXECUTION_ENV = "nodejs20.x"; // what makes it unpack its libraries as well
  const { default: chromium } = await import("@sparticuz/chromium");
  await chromium.executablePath();
  await fs.writeFile(path.join(part, "fonts", "fonts.conf"), FONTS); // its own looks into /tmp/fonts
  await fs.rename(part, folder).catch(async (error) => {
    await fs.rm(part, { recursive: true });
    if (!(await exists(folder))) throw error;
  });
  delete process.env.TMPDIR;
}

const exists = (file) => fs.access(file).then(() => true, () => false);
