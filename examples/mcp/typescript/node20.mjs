// Lets the conformance suite, which imports fs.globSync, start on Node 20, which has none: no scenario for authorization servers calls it.
import { register } from 'node:module';

const fs = 'data:text/javascript,' + encodeURIComponent(`export * from 'node:fs'; import fs from 'node:fs'; export default fs; export const globSync = fs.globSync;`);
register('data:text/javascript,' + encodeURIComponent(`
  export const resolve = (name, context, next) => name === 'fs' && context.parentURL?.includes('/conformance/')
    ? { url: ${JSON.stringify(fs)}, shortCircuit: true } : next(name, context);`));
