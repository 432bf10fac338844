// Written by `npm run types` from the server's OpenAPI description.
export type paths = Record<string, never>;
export type webhooks = Record<string, never>;
export interface components {
    schemas: {
        /** @description A bank in memory. */
        Bank: {
            name: string;
            active: boolean;
            head: string;
            /** @description SHA-256 of bank.json; null once it has learned */
            digest: string | null;
            encoder: {
                [key: string]: unknown;
            };
            entries: number;
            /** @description products, by name; what a request may name as `object` */
            objects: string[];
            image: components["schemas"]["Keys"];
            patch: components["schemas"]["Keys"];
            writable: boolean;
            threshold: number | null;
            pixel_threshold: number | null;
            /** @description how scores were calibrated, or why there is none */
            calibration: string;
            /**
             * @description why verdicts deserve no trust, with the interval; empty where nothing says so
             * @default
             */
            weakness: string;
            /** @description map values of the coldest and the hottest colour, for every image alike */
            map_range?: [
                number,
                number
            ] | null;
            /** @description lowest and highest calibrated score */
            score_range?: [
                number,
                number
            ] | null;
            /** @description what lately came in against the calibration; null without one */
            drift?: components["schemas"]["DriftReport"] | null;
        };
        /** @description Every bank that can be activated. */
        BankList: {
            active: string | null;
            loaded: string[];
            known: string[];
        };
        Body_add_entry: {
            /** Format: binary */
            image: string;
            /** @enum {string} */
            label: "normal" | "anomalous";
            /**
             * Format: binary
             * @description which pixels are defective, at the image's size
             */
            mask?: string;
            /**
             * @description how the mask lies where the image has an orientation tag: as people see it (upright), as its pixels are stored, or found out by its size
             * @default auto
             * @enum {string}
             */
            mask_orientation: "auto" | "upright" | "stored";
            /** @default  */
            source: string;
            /** @default  */
            object_name: string;
            /** @default  */
            defect: string;
            tags?: string[] | null;
        };
        /** @description A calibration on the memory's own images, on its way or done. */
        CalibrationJob: {
            bank: string;
            /** @description product that it is of; null: all */
            object: string | null;
            /** @enum {string} */
            state: "none" | "waiting" | "running" | "done" | "failed";
            /** @description images judged so far */
            done: number;
            /** @description in all; 0 before that is known */
            images: number;
            /** @description why it failed; nothing was changed then */
            why: string;
            threshold: number | null;
            pixel_threshold: number | null;
        };
        /** @description `scores` against the good images of the calibration; `similarity` of the nearest image key. */
        DriftReport: {
            scores: components["schemas"]["Signal"] | null;
            similarity: components["schemas"]["Signal"] | null;
        };
        /** @description A remembered region that the image resembles. */
        Evidence: {
            /** @enum {string} */
            level: "image" | "patch";
            similarity: number;
            /** @enum {string} */
            label: "normal" | "anomalous";
            entry_id: string;
            source: string;
            region: string;
            defect: string;
            /** @description what of the submitted image asked: the most anomalous patch; its pixels */
            query_box?: [
                number,
                number,
                number,
                number
            ] | null;
            /** @description where in the source image the remembered tile lies; null: it is all of it */
            tile?: [
                number,
                number,
                number,
                number
            ] | null;
            /** @description where in the source image the remembered patch lies, pixels; null where the key is no single patch */
            box?: [
                number,
                number,
                number,
                number
            ] | null;
            /** @description width, height of the source image, which `tile` and `box` refer to */
            size?: [
                number,
                number
            ] | null;
            /** @description JPEG, base64 */
            thumbnail?: string | null;
        };
        /** @description An image of the memory that is judged otherwise since the lesson, left out itself. */
        Flip: {
            entry_id: string;
            /**
             * @description what it was taught as
             * @enum {string}
             */
            label: "normal" | "anomalous";
            source: string;
            /**
             * @description its verdict before the lesson
             * @enum {string}
             */
            before: "normal" | "anomalous";
            /**
             * @description its verdict now
             * @enum {string}
             */
            after: "normal" | "anomalous";
            /** @description where its thumbnail can be had, null without one */
            thumbnail: string | null;
        };
        /** @description Keys of one level. */
        Keys: {
            keys: number;
            normal: number;
            anomalous: number;
        };
        /** @description What a lesson did to the bank's thresholds, and to verdicts of the memory's own images. */
        LessonEffect: {
            /**
             * @description `follow`: renewed with the lesson, in force and on disk; `stay`: see `why`; `pending`: not done within 10 seconds, they come into force by themselves
             * @enum {string}
             */
            thresholds: "follow" | "stay" | "pending";
            /** @description why the thresholds stay as they are, or keep less than was asked for; else empty */
            why: string;
            threshold_before: number | null;
            /** @description of the raw score, now */
            threshold: number | null;
            /** @description of map values, now */
            pixel_threshold: number | null;
            /** @description the share of good images to come that are expected at or above the threshold */
            false_alarms: number | null;
            /** @description its 95 % interval */
            false_alarms_range: [
                number,
                number
            ] | null;
            /** @description images of the memory that were judged again, each left out */
            judged: number;
            /** @description how many of those are judged otherwise than before */
            flipped: number;
            /** @description the first 50 of them */
            flips: components["schemas"]["Flip"][];
        };
        /** @description A map: base64 of a file (png16, npy, overlay), or what stands above the pixel threshold. */
        Map: {
            /** @enum {string} */
            format: "none" | "png16" | "npy" | "overlay" | "rle" | "polygons";
            data: unknown;
            /** @description width, height; less than the image's only above 32 megapixels */
            size: [
                number,
                number
            ];
        };
        /** @description The answer to an addition. It is given once the entry is on disk. */
        MemoryAdded: {
            entry: components["schemas"]["MemoryEntry"];
            /** @description true when this idempotency key had added it before */
            repeated: boolean;
            /** @description in the memory now */
            entries: number;
            /** @description what the image could not teach; null where all is well */
            note: string | null;
            /**
             * @description `code: text` for what was assumed or is odd about image or mask
             * @default []
             */
            warnings: string[];
            /** @description what it changed; null for a repeat, which changes nothing */
            effect: components["schemas"]["LessonEffect"] | null;
        };
        /** @description One labelled image of the memory. */
        MemoryEntry: {
            /** @example 01990e5c-7d1e-7c3a-9a56-0f6f0a3b2c1d */
            entry_id: string;
            /** @enum {string} */
            label: "normal" | "anomalous";
            source: string;
            object_name: string;
            defect: string;
            tags: string[];
            width: number;
            height: number;
            /** @example 2026-01-02T03:04:05Z */
            added_at: string;
            added_by: string;
            /** @description where its thumbnail can be had, null without one */
            thumbnail: string | null;
        };
        /** @description A page of entries, newest first. */
        MemoryPage: {
            entries: components["schemas"]["MemoryEntry"][];
            /** @description pass as `cursor` for the next page; null at the end */
            next_cursor: string | null;
            total: number;
        };
        /** @description The answer once an entry is forgotten, on disk too. */
        MemoryRemoved: {
            entry_id: string;
            /** @description in the memory now */
            entries: number;
            /** @description what it changed */
            effect: components["schemas"]["LessonEffect"] | null;
        };
        /** @description A named part of the image, of the request's or the bank's, with a judgement of its own. */
        Part: {
            name: string;
            box: [
                number,
                number,
                number,
                number
            ];
            score: number;
            class_score: number;
            calibrated_score?: number | null;
            verdict?: ("normal" | "anomalous") | null;
            probability?: number | null;
        };
        /** @description A problem document (RFC 9457). */
        Problem: {
            /** @example urn:mrad:problem:invalid_image */
            type: string;
            /** @example Unprocessable Content */
            title: string;
            /** @example 422 */
            status: number;
            /**
             * @description stable: match on this
             * @example invalid_image
             */
            code: string;
            /** @example the image is not an image in a known format */
            detail: string;
            request_id?: string | null;
            /** @description where the request is wrong */
            errors?: {
                [key: string]: unknown;
            }[] | null;
        };
        /** @description A picture that the memory was taught, shown again: its label decides the verdict. */
        Recognised: {
            entry_id: string;
            /** @enum {string} */
            label: "normal" | "anomalous";
            source: string;
            /** @description mean cosine of patches at the same place */
            similarity: number;
            /** @description entries that show the same picture with the other label, and were taught before */
            contradicts: string[];
        };
        /** @description A connected part of the map at or above the pixel threshold; pixels of the input image. */
        Region: {
            /** @description [x_min, y_min, x_max, y_max) */
            box: [
                number,
                number,
                number,
                number
            ];
            area: number;
            peak: number;
            peak_at: [
                number,
                number
            ];
            polygon: [
                number,
                number
            ][];
        };
        /** @description One image's judgement, or its problem. */
        Result: {
            index: number;
            name: string;
            /** @enum {string} */
            status: "ok" | "error";
            /** @description raw, in [0, 1]: its order counts */
            score?: number | null;
            /** @description 0 to 100: the threshold in force is 50, the median good part about 10; null without a calibration */
            calibrated_score?: number | null;
            class_score?: number | null;
            verdict?: ("normal" | "anomalous") | null;
            threshold?: number | null;
            /** @description of a defect, where as many images are defective as in the calibration: it may differ from the verdict; null where the calibration knew good images alone */
            probability?: number | null;
            /** @description share of good parts that look as unusual, or more; no probability of a defect */
            p_value?: number | null;
            map?: components["schemas"]["Map"] | null;
            regions?: components["schemas"]["Region"][] | null;
            evidence?: components["schemas"]["Evidence"][] | null;
            /** @description the patch that is most anomalous; pixels of the input image */
            peak_box?: [
                number,
                number,
                number,
                number
            ] | null;
            /** @description the taught picture that this one is: score, verdict and map are on the side of its label; null where it is none */
            recognised?: components["schemas"]["Recognised"] | null;
            /** @description where the request or the bank names parts */
            parts?: components["schemas"]["Part"][] | null;
            /** @description of an image that was cut, where `fields` asks for them */
            tiles?: components["schemas"]["Tile"][] | null;
            /** @description `code: text` for what was assumed, is odd about the image, or cannot be promised: its verdict may be worth nothing. Given whatever `fields` says. */
            warnings?: string[] | null;
            problem?: components["schemas"]["Problem"] | null;
        };
        /**
         * @description A result for each image, in the order submitted.
         * @example {
         *       "bank": "visa",
         *       "results": [
         *         {
         *           "calibrated_score": 88.4,
         *           "class_score": 0.5107,
         *           "index": 0,
         *           "name": "board.png",
         *           "p_value": 0.012,
         *           "probability": 0.93,
         *           "regions": [
         *             {
         *               "area": 890,
         *               "box": [
         *                 10,
         *                 20,
         *                 42,
         *                 61
         *               ],
         *               "peak": 0.5391,
         *               "peak_at": [
         *                 30,
         *                 40
         *               ],
         *               "polygon": [
         *                 [
         *                   10.5,
         *                   20
         *                 ],
         *                 [
         *                   42,
         *                   20.5
         *                 ],
         *                 [
         *                   41.5,
         *                   61
         *                 ]
         *               ]
         *             }
         *           ],
         *           "score": 0.5132,
         *           "status": "ok",
         *           "threshold": 0.5114,
         *           "verdict": "anomalous"
         *         },
         *         {
         *           "index": 1,
         *           "name": "notes.txt",
         *           "problem": {
         *             "code": "invalid_image",
         *             "detail": "the image is not an image in a known format",
         *             "status": 422,
         *             "type": "urn:mrad:problem:invalid_image"
         *           },
         *           "status": "error"
         *         }
         *       ]
         *     }
         */
        Scores: {
            results: components["schemas"]["Result"][];
            bank: string;
        };
        /** @description One distribution against the calibration's. */
        Signal: {
            /** @description looked back on */
            images: number;
            mean: number;
            calibrated_mean: number;
            /** @description largest difference of the two distribution functions */
            distance: number;
            /** @description reached by chance once in a hundred such windows */
            limit: number;
            drifted: boolean;
        };
        /** @description A tile of an image that was cut. */
        Tile: {
            box: [
                number,
                number,
                number,
                number
            ];
            class_score: number;
            /** @description its largest patch probability */
            peak: number;
            /**
             * @description false: it was looked at coarsely only, its numbers are 0 (`tile_closely`)
             * @default true
             */
            closely: boolean;
        };
    };
    responses: never;
    parameters: never;
    requestBodies: never;
    headers: never;
    pathItems: never;
}
export type $defs = Record<string, never>;
export type operations = Record<string, never>;
